"""Drawing what is asked next: the drawn pairs come first, with the probability by which they were drawn, and nothing begun is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.web_team import Team, make_team, question

from preftune.data import tables
from preftune.data.selection import next_pairs
from preftune.errors import DataError
from preftune.web import audit
from preftune.web.next_items import FIRST, Drawn, ask_next, last_draw
from preftune.web.persons import AuthError


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    made = make_team(tmp_path, "Ann", "Bob")
    yield made
    made.store.close()


def rows(team: Team) -> dict[frozenset[str], tuple[int, str, float | None]]:
    table = tables.items.c
    query = select(table.candidate_ids, table.priority, table.picked_by, table.picked_probability)
    with team.store.reading() as connection:
        return {frozenset(row[0]): (row[1], row[2], row[3]) for row in connection.execute(query)}


def test_what_was_drawn_goes_first_with_its_probability(team: Team):
    for n in range(12):
        team.add(question(f"Question {n}?"), [f"alpha {n}", f"beta {n * n}", f"gamma {n + 3}"])
    before, olga = rows(team), team.people["Olga"]  # twelve items that rank three answers
    expected = next_pairs(team.store, 8, seed=audit.last_number(team.store))
    drawn = ask_next(team.store, olga, 8, team.settings)
    assert drawn == Drawn(made=len(expected), moved=0, begun=0) == last_draw(team.store)
    after = rows(team)
    new = {pair: row for pair, row in after.items() if pair not in before}
    assert new == {frozenset(p.candidates): (FIRST, p.picked_by, pytest.approx(p.probability)) for p in expected}
    assert all(after[item] == before[item] for item in before)
    browser = team.at_item("Ann")
    browser.send(f"{browser.judging()}/submit", choice="1")
    (judgement,) = team.judgements()
    pair = frozenset(candidate for tier in judgement.ranking for candidate in tier)
    assert (judgement.picked_by, judgement.picked_probability) == (new[pair][1], new[pair][2])


def test_an_item_that_nobody_has_begun_moves_to_the_front_and_one_that_is_begun_stays(team: Team):
    for n in range(6):
        team.add(question(f"Question {n}?"), [f"left {n}", f"right {n * 7}"])
    team.at_item("Ann")  # holds one
    table = tables.items.c
    with team.store.reading() as connection:
        held = frozenset(connection.execute(select(table.candidate_ids).where(table.queue != "fresh")).scalar_one())
    before = rows(team)
    seed = next(
        n for n in range(audit.last_number(team.store), 50) if held in {frozenset(p.candidates) for p in next_pairs(team.store, 6, seed=n)}
    )
    for _ in range(seed - audit.last_number(team.store)):
        audit.record(team.store, "preftune", "wait")
    drawn = ask_next(team.store, team.people["Olga"], 6, team.settings)
    after = rows(team)
    assert set(after) == set(before)
    assert after[held] == before[held]
    assert (drawn.made, drawn.begun) == (0, 1)
    assert drawn.moved == sum(row[0] == FIRST for row in after.values()) >= 3


def test_the_owner_draws_on_the_page_of_items(team: Team):
    for n in range(4):
        team.add(question(f"Question {n}?"), [f"left {n}", f"right {n * 7}"])
    browser = team.browser("Olga")
    browser.get("/owner/items")
    assert "The last draw" not in browser.page.words
    browser.send("/owner/items/next", n="4")
    assert browser.here == "/owner/items"
    assert "The last draw made 0 new, moved " in browser.page.words
    browser.send("/owner/items/next", n="0")
    assert browser.status == 422
    assert "The number of pairs is '0'" in browser.page.words


def test_who_may_not_draw_and_what_cannot_be_drawn(team: Team):
    with pytest.raises(AuthError):
        ask_next(team.store, team.people["Ann"], 5, team.settings)
    with pytest.raises(DataError, match="no two candidates"):
        ask_next(team.store, team.people["Olga"], 5, team.settings)
    with pytest.raises(DataError, match="out of bounds"):
        ask_next(team.store, team.people["Olga"], 0, team.settings)
    assert last_draw(team.store) is None
