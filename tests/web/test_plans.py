"""Every look-up of the app and of the store goes by an index, in both databases: the plans of what really ran on 50,000 judgements.

The statements are caught while pages are shown and functions called, and the database is asked how it would run each of them, with the
values that it ran with. What has to read a whole table, since it counts or freezes all of it, is named in WHOLE with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, text
from tests.web_team import PASSWORD, PLAIN, Team, answers_to, question

from preftune.data import tables
from preftune.data.store import Store
from preftune.records import Judgement
from preftune.web import assign, audit, auth, erasure, figures, owner_gold, progress, spreadsheet
from preftune.web.app import create_app
from preftune.web.contested import Contested, disputes_of
from preftune.web.settings import LabelSettings

PROMPTS, EACH = 12_500, 4  # judgements on each
LARGE = {"prompts", "candidates", "judgements", "items", "assignments", "submissions", "audit", "feedback"}
NUMBERS = {
    "postgresql": "FROM generate_series(1, {n}) AS series(n)",
    "sqlite": "FROM (WITH RECURSIVE series(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {n}) SELECT n FROM series)",
}
ID = {"postgresql": "lpad(to_hex({}), 16, '0')", "sqlite": "printf('%016x', {})"}
TIME = {
    "postgresql": "TIMESTAMPTZ '2026-01-01' + n * INTERVAL '1 second'",
    "sqlite": "datetime('2026-01-01', n || ' seconds') || '.000000'",
}


def fill(store: Store, people: list[auth.Person]) -> None:
    """Put judgements into a store that were given in its app, by SQL alone: `EACH` people on each prompt with two answers."""
    with store.writer() as writer:
        name = writer.connection.dialect.name

        def insert(table: str, count: int, **columns: str) -> None:
            source = NUMBERS[name].format(n=count)
            said = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(columns.values())} {source}"
            writer.connection.exec_driver_sql(said.replace("%", "%%") if name == "postgresql" else said)

        def key(number: str) -> str:
            return ID[name].format(number)

        prompt = f"((n - 1) / {EACH} + 1)"
        person, rater = (
            f"(CASE n % {EACH} {' '.join(f'WHEN {i} THEN {getattr(one, name)!r}' for i, one in enumerate(people))} END)"
            for name in ("id", "pseudonym")
        )
        first, second = key(f"{prompt} * 2"), key(f"{prompt} * 2 - 1")
        order = f"""'[["' || {first} || '"], ["' || {second} || '"]]'"""
        shown = f"""'["' || {first} || '", "' || {second} || '"]'"""
        as_json = {"postgresql": "({})::json", "sqlite": "{}"}[name].format
        message = """'[{"role": "user", "content": "question ' || n || '"}]'"""
        yes, when, nothing = {"postgresql": "TRUE", "sqlite": "1"}[name], TIME[name], as_json("'{}'")
        if name == "postgresql":  # what refers to what is right here, and need not be looked up for each row
            writer.connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        insert(
            "prompts",
            PROMPTS,
            id=key("n"),
            messages=as_json(message),
            kind="CASE WHEN n % 9 = 0 THEN 'naming' ELSE '' END",
            check_code="''",
        )
        insert(
            "candidates", 2 * PROMPTS, id=key("n"), prompt_id=key("((n + 1) / 2)"), text="'answer ' || n", source="'m'", sampling=nothing
        )
        rows = EACH * PROMPTS
        insert(
            "judgements", rows, id=key("n"), prompt_id=key(prompt), ranking=as_json(order), aspects=nothing, rater=rater,
            presentation=as_json(shown), picked_by="CASE WHEN n % 100 = 0 THEN 'gold' ELSE 'random' END", created=when,
        )  # fmt: skip
        mine = shown.replace(prompt, "n")
        insert(
            "items", PROMPTS, id=key("n"), prompt_id=key("n"), candidate_ids=as_json(mine), task="'pair'", purpose="'normal'",
            picked_by="'random'", priority="0", wanted=f"{EACH + 1}", taken=f"{EACH}",
            queue="CASE WHEN n % 5 = 0 THEN 'started' WHEN n % 5 = 1 THEN 'fresh' ELSE 'closed' END", shuffle="n * 7919 % 100003",
            created=when,
        )  # fmt: skip
        insert(
            "assignments", rows, id="'a' || n", item_id=key(prompt), person_id=person, purpose="'normal'", presentation=as_json(shown),
            state="'submitted'", holds=yes, lease_until=when, lease_seconds="1800", draft_version="0", judgement_id=key("n"),
            head_id=key("n"), active_seconds="n % 60", created=when, updated=when, submitted=when,
        )  # fmt: skip
        insert("submissions", rows, assignment_id="'a' || n", id="'once'", judgement_id=key("n"), created=when)
        insert(
            "audit",
            PROMPTS,
            number="n + 100",
            at=when,
            actor="'x'",
            action="'log in'",
            object="''",
            detail=nothing,
            previous_hash="''",
            hash="''",
        )
    with store._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def team(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A team whose raters have judged much."""
    folder = tmp_path_factory.mktemp("large")
    address = str(folder / "s.db") if request.param == "sqlite" else request.getfixturevalue("fresh_postgres")()
    with Store.create(address) as store:
        names = ["Ann", "Bob", "Cem", "Rita"]
        people = {"Olga": auth.add_person(store, "Olga", PASSWORD, "owner")}
        people |= {name: auth.add_person(store, name, PASSWORD, "rater") for name in [*names, "New"]}
        fill(store, [people[name] for name in names])
        settings = LabelSettings.model_validate({"guidelines": folder / "guidelines.md", "overlap": EACH + 1, **PLAIN})
        yield Team(store, settings, create_app(store, settings), people)


@contextmanager
def caught(store: Store) -> Iterator[list[tuple[str, Any]]]:
    """Yield the statements that run inside the `with`, each once, with the values of the first time."""
    found: dict[str, Any] = {}

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if re.match(r"(SELECT|UPDATE|DELETE|WITH)\b", statement) and not statement.startswith("SELECT pg_"):
            found.setdefault(statement, parameters[0] if executemany else parameters)

    statements: list[tuple[str, Any]] = []
    event.listen(store._engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(store._engine, "before_cursor_execute", note)
        statements += found.items()


def read_whole(store: Store, statement: str, parameters: Any) -> set[str]:
    """Return the large tables that the database would read from end to end for a statement."""
    with store.reading() as connection:
        if connection.dialect.name == "postgresql":
            (said,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalars().all()
            plan = said if isinstance(said, list) else json.loads(said)
            return {node["Relation Name"] for node in nodes(plan[0]["Plan"]) if node["Node Type"] == "Seq Scan"} & LARGE
        lines = [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    if "WHERE" not in statement and "LIMIT" in statement and not any("TEMP B-TREE" in line for line in lines):
        return set()  # in the order of the rows, and stops
    named = {found[1] for line in lines if (found := re.fullmatch(r"SCAN (\w+)", line))}
    return {re.sub(r"_\d+$", "", name) for name in named} & (LARGE | {"near", "other", "again", "later"})


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def rating(team: Team) -> None:
    """Let a new rater take an item, draft, judge, correct, take back and skip, and look at what they did."""
    browser = team.at_item("New")
    browser.get("/history")
    person = team.people["New"]
    task = assign.next_assignment(team.store, person, team.settings)
    assert isinstance(task, assign.Assignment)
    version = assign.save_draft(team.store, person, task.id, task.draft_version, {"places": {}})
    assert version == task.draft_version + 1
    answer = assign.Answer(ranking=[[0], [1]], rewrite="A better one.", rewrite_of=0)
    for name in ("first-word", "other-word"):
        assign.submit(team.store, person, task.id, name, answer)
    assert assign.undo(team.store, person) == task.id
    assign.skip(team.store, person, task.id, "other")
    assert assign.give_back_expired(team.store) == 0
    other = assign.take_next(team.store, team.people["Rita"], team.settings)
    assert other == assign.Empty("finished") or isinstance(other, str)


def pages(team: Team) -> None:
    """Show an owner every page that is about something, and not about all."""
    prompt = question("a real question")
    answers = answers_to(prompt, ["one", "two"])
    said = [Judgement(prompt_id=prompt.id, ranking=((answers[n].id,), (answers[1 - n].id,)), rater=f"rater {n}") for n in (0, 1)]
    team.store.add([prompt], answers, said)
    browser = team.browser("Olga")
    for path in (
        "/owner/items", "/owner/items?page=7", "/owner/people", f"/owner/people/{team.people['Bob'].id}/delete",
        f"/owner/prompts/{prompt.id}", "/owner/comparisons", "/owner/settings", "/healthz",
    ):  # fmt: skip
        browser.get(path)
        assert browser.status == 200, path
    assert owner_gold.gold_items(team.store) == []  # the page itself shows figures of all judgements too
    assert erasure.personal_data(team.store, team.people["Bob"].id).judgements == PROMPTS
    assert audit.entries(team.store, after=PROMPTS + 99)[0].number == PROMPTS + 100
    assert audit.last_number(team.store) >= PROMPTS + 100


def streams(team: Team) -> None:
    """Read what snapshots, exports and spreadsheets read in a stream: the first pages of each show how they all are found."""
    store = team.store
    for stream in (store.contents(), store.judged(), store.candidates(), store.judgements(), spreadsheet.csv_lines(store)):
        for _ in range(3):
            next(stream)
    assert (len([*store.judgements(ID_OF_FIRST)]), len([*store.candidates(ID_OF_FIRST)])) == (EACH, 2)
    assert store.known("judgements", [ID_OF_FIRST]) == {ID_OF_FIRST}
    assign.fill_items(store, team.settings)


def numbers(team: Team) -> None:
    """Measure what the owner's pages show of a store that is larger than what they look at."""
    few = 400
    assert figures.measure(team.store, few).measured == few + EACH
    seen = Contested(team.store, few)
    assert (len(seen.marked()) <= 1, seen.newest) == (True, few)  # that of the prompt which `pages` adds
    with team.store.reading() as connection:
        assert list(disputes_of(connection, [ID_OF_FIRST])) == []
    judged = [pace.judged for pace in progress.overview(team.store, datetime.now(UTC)).paces]
    assert sum(judged) >= EACH * PROMPTS


ID_OF_FIRST = f"{1:016x}"

# What cannot but read a table from end to end, and why.
WHOLE = {
    r"SELECT count\(\*\)": "a count of most of a table",
    r"SELECT max\(judgements.number\) AS max_1, count\(\*\)": "whether the figures that are kept are still those of the store",
    r"SELECT (items|prompts).number \nFROM (items|prompts)[^;]* LIMIT %\(param_1\)s::INTEGER$": "the first row there is, in any order",
    r"SELECT judgements.rater, count\(\*\)": "how many judgements each rater has given, on the page of people",
    r"SELECT DISTINCT prompts.kind": "the kinds there are, in the list of items",
    r"SELECT prompts.number, prompts.id \nFROM prompts[^;]*NOT \(EXISTS": "prompts without items, at the start and after imports",
    r"SELECT anon_1.wanted": "items by how many of their judgements are there",
    r"SELECT assignments.person_id, count\(CASE": "how much each rater has judged and skipped",
    r"SELECT (count\(CASE|min\(assignments.submitted)": "how much was judged in each of the last days, and since when",
    r"SELECT assignments.skip_reason, count": "how often what was skipped",
    r"UPDATE items SET wanted": "when the server starts: items whose overlap is the settings'",
}


@pytest.mark.parametrize("look", [rating, pages, streams, numbers], ids=lambda look: look.__name__)
def test_a_look_up_goes_by_an_index(team: Team, look: Callable[[Team], None]) -> None:
    with caught(team.store) as statements:
        look(team)
    found = {statement: read_whole(team.store, statement, parameters) for statement, parameters in statements}
    assert len(found) > 10
    slow = {statement: names for statement, names in found.items() if names and not any(re.match(why, statement) for why in WHOLE)}
    assert slow == {}


def test_a_store_that_was_just_filled_is_read_by_an_index(team: Team) -> None:
    with caught(team.store) as statements:
        for stream in (team.store.contents(), team.store.judged()):
            next(stream)
    with team.store.frozen(), team.store.reading() as connection, connection.begin_nested() as without_statistics:
        if team.store.path is None:  # PostgreSQL has none for a while after an import
            connection.exec_driver_sql("DELETE FROM pg_statistic WHERE starelid >= 16384")  # the database's own tables are below
        found = {statement: read_whole(team.store, statement, parameters) for statement, parameters in statements}
        without_statistics.rollback()
    assert len(found) >= 5
    assert not any(found.values()), found


def test_a_statement_without_an_index_is_noticed(team: Team) -> None:
    with caught(team.store) as statements, team.store.reading() as connection:
        connection.execute(tables.judgements.select().where(tables.judgements.c.rationale == "because"))
    ((statement, parameters),) = statements
    assert read_whole(team.store, statement, parameters) == {"judgements"}
