"""A real browser walks through every task by keyboard alone and by mouse alone, loses its connection, opens two tabs."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.remote_server import delta, serving, streams
from tests.web_payloads import PAYLOADS
from tests.web_site import WAIT, Visitor, chromium, served
from tests.web_team import Team, make_team, question

from preftune.records import Judgement, standing
from preftune.web import assign, auth

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SAVED = re.compile(r"^Saved \d")
WORDS = ["quokka", "numbat", "dugong", "bilby", "potoroo", "wallaby", "echidna", "kowari", "quoll"]
Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Visit]:
    """Return a function that makes a team with these settings, or takes the one made before, and lets a person visit."""
    made: list[tuple[Team, str]] = []
    visitors: list[Visitor] = []
    stack: list[Any] = []

    def begin(name: str | None = "Rita", *, options: dict[str, Any] | None = None, **settings: Any) -> Visitor:
        if not made:
            team = make_team(tmp_path, "Rita", "Ravi", **settings)
            stack.append(served(team))
            made.append((team, stack[-1].__enter__()))
        visitors.append(Visitor(browser, *made[0], name, **(options or {})))
        return visitors[-1]

    yield begin
    for visitor in visitors:
        visitor.context.close()
    for server in stack:
        server.__exit__(None, None, None)
    for team, _ in made:
        team.store.close()


def shown_order(page: Any, ids: dict[str, str]) -> list[str]:
    """Return the ids of the answers in the order shown, by their texts."""
    return [ids[page.locator(f"#answer-{i} .formatted").inner_text().strip()] for i in range(len(ids))]


def add(visitor: Visitor, count: int) -> dict[str, str]:
    """Add an item with so many answers; returns their ids by text."""
    candidates = visitor.team.add(question(f"Which of {count}?"), WORDS[:count])
    return {candidate.text: candidate.id for candidate in candidates}


def saved(page: Any) -> str:
    """Wait until the page that follows a submission is there; returns what it says was saved."""
    notice = page.locator(".notice.done")
    notice.wait_for()
    return notice.locator("strong").first.inner_text()


def filled(field: Any) -> None:
    """Wait until something stands in a field. The page's policy forbids to wait by script made of text."""
    from playwright.sync_api import expect

    expect(field).not_to_have_value("", timeout=WAIT)


def last(visitor: Visitor) -> Judgement:
    return standing(visitor.team.judgements())[-1]


# By keyboard alone


@pytest.mark.parametrize(("key", "better", "strength"), [("1", 0, 3), ("3", 0, 1), ("4", None, 0), ("6", 1, 2)])
def test_a_pair_is_judged_by_keyboard_alone(visit, key, better, strength):
    visitor = visit()
    ids = add(visitor, 2)
    page = visitor.at_item()
    order = shown_order(page, ids)
    page.keyboard.press(key)
    page.keyboard.press("c")
    page.keyboard.type("because 1 2 3 s u ?")  # keys write in a field and do nothing else
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+B")
    page.keyboard.press("x")
    page.keyboard.press("Control+Enter")
    saved(page)
    said = last(visitor)
    assert said.strength == strength
    assert said.ranking[0][0] == order[better] if better is not None else len(said.ranking) == 1
    assert (said.rationale, said.acceptable) == ("because 1 2 3 s u ?", (order[1],))
    assert said.active_seconds is not None
    assert visitor.trouble == []


@pytest.mark.parametrize("seed", range(4))
def test_a_random_ranking_by_keyboard_is_the_same_ranking_in_the_store(visit, seed):
    visitor, chance = visit(), random.Random(seed)
    count = chance.choice([3, 4, 6, 9])
    ids = add(visitor, count)
    page = visitor.at_item()
    order = shown_order(page, ids)
    places = [chance.randint(1, count) for _ in range(count)]
    for i in chance.sample(range(count), count):
        page.keyboard.press(f"Shift+{'ABCDEFGHI'[i]}")
        page.keyboard.press(str(places[i]))
    page.keyboard.press("Control+Enter")
    saved(page)
    expected = [{order[i] for i in range(count) if places[i] == place} for place in sorted(set(places))]
    assert [set(tier) for tier in last(visitor).ranking] == expected
    assert visitor.trouble == []


def test_places_are_moved_levelled_and_taken_back_by_keyboard(visit):
    visitor = visit()
    ids = add(visitor, 4)
    page = visitor.at_item()
    order = shown_order(page, ids)
    for key in (
        "j",
        "3",
        "Shift+ArrowUp",
        "j",
        "4",
        "=",
        "j",
        "1",
        "Shift+ArrowDown",
        "Shift+ArrowDown",
        "k",
        "Shift+D",
        "0",
        "Shift+D",
        "4",
    ):
        page.keyboard.press(key)
    # A went to 3 and up to 2; B to 4 and level with A, so 2; C to 1 and down twice, so 3; D to 4 in the end.
    page.keyboard.press("Control+Enter")
    assert saved(page) == "A = B > C > D"
    assert [set(tier) for tier in last(visitor).ranking] == [{order[0], order[1]}, {order[2]}, {order[3]}]


def test_best_and_worst_are_said_by_keyboard_alone(visit):
    visitor = visit(task="best_worst")
    ids = add(visitor, 4)
    page = visitor.at_item()
    order = shown_order(page, ids)
    for key in ("Shift+C", "+", "Shift+A", "-", "Control+Enter"):
        page.keyboard.press(key)
    saved(page)
    best, between, worst = last(visitor).ranking
    assert (best, set(between), worst) == ((order[2],), {order[1], order[3]}, (order[0],))


def test_skipping_undoing_and_all_bad_by_keyboard_alone(visit):
    visitor = visit()
    add(visitor, 2)
    page = visitor.at_item()
    path = page.url
    page.keyboard.press("s")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert saved(page) == f"skipped ({assign.SKIP_REASONS[1]})"
    page.keyboard.press("u")
    page.wait_for_url(f"{path}?undone=1")
    page.locator("#judge.ready").wait_for()
    page.keyboard.press("b")
    page.keyboard.press("Control+Enter")
    assert saved(page) == "none is good enough"
    assert last(visitor).acceptable == ()


def test_the_best_answer_is_rewritten_by_keyboard_alone(visit):
    visitor = visit()
    ids = add(visitor, 2)
    page = visitor.at_item()
    order = shown_order(page, ids)
    page.keyboard.press("7")
    page.keyboard.press("e")
    filled(page.locator("#rewrite"))
    page.keyboard.type("A better ")
    page.keyboard.press("Control+Enter")
    saved(page)
    said = last(visitor)
    assert (said.rewrite_of, said.rewrite) == (order[1], f"A better {page_text(ids, order[1])}")


def page_text(ids: dict[str, str], wanted: str) -> str:
    return next(text for text, found in ids.items() if found == wanted)


def test_the_sheet_of_keys_opens_and_closes_and_keys_do_nothing_behind_it(visit):
    visitor = visit()
    add(visitor, 2)
    page = visitor.at_item()
    page.keyboard.press("?")
    page.locator("dialog[open]").wait_for()
    assert "submit and go on" in page.locator("#window-body").inner_text()
    page.keyboard.press("1")
    page.keyboard.press("Escape")
    page.locator("dialog:not([open])").wait_for(state="attached")
    assert page.locator("input[name=choice]:checked").count() == 0
    page.keyboard.press("g")
    page.locator("dialog[open]").wait_for()
    assert visitor.trouble == []


def test_a_key_that_is_held_down_submits_once_and_a_word_being_composed_does_nothing(visit):
    visitor = visit()
    add(visitor, 2)
    visitor.team.add(question("Another?"), ["x", "y"])
    page = visitor.at_item()
    page.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '1', bubbles: true, isComposing: true}))")
    assert page.locator("input[name=choice]:checked").count() == 0
    page.keyboard.press("2")
    page.keyboard.down("Control")
    for _ in range(5):
        page.keyboard.down("Enter")  # Playwright sends the later ones as repeated
    saved(page)
    page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    page.keyboard.up("Control")
    assert len(visitor.team.judgements()) == 1


def test_single_keys_can_be_switched_off(visit):
    visitor = visit()
    add(visitor, 2)
    page = visitor.at_item()
    page.keyboard.press("?")
    page.locator("dialog[open] [data-keys-on]").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    assert page.locator("input[name=choice]:checked").count() == 0


# By mouse alone


def test_a_pair_is_judged_by_mouse_alone(visit):
    visitor = visit()
    ids = add(visitor, 2)
    page = visitor.open("/")
    page.get_by_role("button", name="Judge the first one").click()
    page.wait_for_url("**/a/*")
    order = shown_order(page, ids)
    page.get_by_text("B slightly").click()
    page.locator("#submit").click()
    saved(page)
    assert (last(visitor).ranking, last(visitor).strength) == (((order[1],), (order[0],)), 1)
    page.get_by_role("button", name="Undo").click()
    page.wait_for_url("**?undone=1")
    page.get_by_text("Skip").click()
    page.get_by_role("button", name=assign.SKIP_REASONS[0]).click()
    assert saved(page) == f"skipped ({assign.SKIP_REASONS[0]})"
    assert visitor.trouble == []


def test_a_ranking_is_made_by_clicking_and_by_dragging(visit):
    visitor = visit()
    ids = add(visitor, 4)
    page = visitor.at_item()
    order = shown_order(page, ids)
    page.locator("#answer-2 .places label").nth(1).click()
    page.locator("#answer-0 .places label").nth(2).click()
    for letter, place in (("B", "1"), ("D", "4"), ("D", "3")):
        chip = page.locator(".chip", has_text=letter).bounding_box()
        tier = page.locator(f'.tier[data-place="{place}"]').bounding_box()
        page.mouse.move(chip["x"] + 5, chip["y"] + 5)
        page.mouse.down()
        page.mouse.move(tier["x"] + 20, tier["y"] + 20, steps=4)
        page.mouse.up()
    page.locator("#submit").click()
    assert saved(page) == "B = C > A > D"
    assert [set(tier) for tier in last(visitor).ranking] == [{order[1], order[2]}, {order[0]}, {order[3]}]


def test_best_and_worst_are_said_by_mouse_alone(visit):
    visitor = visit(task="best_worst")
    ids = add(visitor, 3)
    page = visitor.at_item()
    order = shown_order(page, ids)
    page.locator("#answer-1 .pick", has_text="best").click()
    page.locator("#answer-2 .pick", has_text="worst").click()
    page.locator("#submit").click()
    saved(page)
    assert last(visitor).ranking == ((order[1],), (order[0],), (order[2],))


def test_a_pair_is_judged_without_any_script(visit):
    visitor = visit(options={"java_script_enabled": False})
    ids = add(visitor, 2)
    page = visitor.at_item(ready="")
    order = shown_order(page, ids)
    page.get_by_text("A much better").click()
    page.locator("#submit").click()
    saved(page)
    assert last(visitor).ranking[0] == (order[0],)


# What is not lost


def test_a_judgement_without_connection_waits_and_is_sent_when_it_is_back(visit):
    visitor = visit()
    add(visitor, 2)
    page = visitor.at_item()
    path = page.url
    visitor.context.set_offline(True)
    page.keyboard.press("1")
    page.keyboard.press("c")
    page.keyboard.type("typed in a tunnel")
    page.keyboard.press("Control+Enter")
    page.locator("#offline").wait_for()
    assert "kept on this computer" in page.locator("#offline").inner_text()
    assert page.url == path
    assert visitor.team.judgements() == []
    visitor.context.set_offline(False)
    saved(page)
    assert last(visitor).rationale == "typed in a tunnel"
    assert len(visitor.team.judgements()) == 1


def test_what_was_typed_without_connection_is_there_after_the_tab_was_closed(visit):
    visitor = visit()
    add(visitor, 2)
    page = visitor.at_item()
    path = page.url
    visitor.context.set_offline(True)
    page.keyboard.press("c")
    page.keyboard.type("half a thought")
    page.locator("#offline").wait_for()
    page.close()
    visitor.context.set_offline(False)
    page = visitor.open(path)
    assert page.locator("#rationale").input_value() == "half a thought"
    page.locator("#saved", has_text=SAVED).wait_for()
    again = visit().open(path)  # the server has it now: another browser sees it too
    assert again.locator("#rationale").input_value() == "half a thought"


def test_a_judgement_that_was_left_behind_is_sent_from_whatever_page_is_opened_next(visit):
    visitor = visit()
    add(visitor, 2)
    page = visitor.at_item()
    visitor.context.set_offline(True)
    page.keyboard.press("1")
    page.keyboard.press("Control+Enter")
    page.locator("#offline").wait_for()
    page.close()
    visitor.context.set_offline(False)
    page = visitor.open("/")
    page.locator("#spoken", has_text="has been sent").wait_for(state="attached")  # the page's policy lets no script be made of text
    assert len(visitor.team.judgements()) == 1


def test_a_draft_whose_answer_was_lost_is_not_taken_for_another_windows(visit):
    visitor = visit()
    add(visitor, 2)
    page = visitor.at_item()

    def arrives_but_is_not_answered(route: Any) -> None:
        route.fetch()  # the server has it now
        route.abort()

    page.route("**/draft", arrives_but_is_not_answered, times=1)
    page.locator("#rationale").fill("half")
    page.locator("#offline").wait_for()
    page.locator("#rationale").fill("half a thought")
    page.locator("#saved", has_text=SAVED).wait_for()
    assert not page.locator("#conflict").is_visible()
    page.evaluate("localStorage.clear()")
    page.reload()
    assert page.locator("#rationale").input_value() == "half a thought"


def test_two_tabs_do_not_write_over_each_other(visit):
    visitor = visit()
    add(visitor, 2)
    first = visitor.at_item()
    second = visitor.open(first.url)
    first.locator("#rationale").fill("from the first")
    first.locator("#saved", has_text=SAVED).wait_for()
    second.evaluate("localStorage.clear()")  # as if it were another computer
    second.locator("#rationale").fill("from the second")
    second.locator("#conflict").wait_for()
    second.locator("#take-theirs").click()
    assert second.locator("#rationale").input_value() == "from the first"
    second.locator("#take-theirs").click()
    assert second.locator("#rationale").input_value() == "from the second"
    second.locator("#keep-mine").click()
    second.locator("#saved", has_text=SAVED).wait_for()
    first.reload()
    assert first.locator("#rationale").input_value() == "from the second"


def test_a_session_that_ends_in_the_middle_loses_nothing(visit):
    visitor = visit()
    add(visitor, 2)
    page = visitor.at_item()
    page.keyboard.press("2")
    auth.revoke_sessions(visitor.team.store, visitor.team.people["Rita"].id)
    page.keyboard.press("Control+Enter")
    page.get_by_text("You have been logged out").wait_for()
    assert visitor.team.judgements() == []
    page.get_by_role("link", name="Open it").click()
    page.locator("#name").fill("Rita")
    page.locator("#password").fill("a few plain words")
    page.get_by_role("button", name="Log in").click()
    saved(page)
    assert last(visitor).strength == 2


def test_reopening_shows_what_was_said_in_the_order_that_was_shown(visit):
    visitor = visit()
    ids = add(visitor, 5)
    page = visitor.at_item()
    path, order = page.url, shown_order(page, ids)
    for i, place in enumerate("21345"):
        page.keyboard.press(f"Shift+{'ABCDE'[i]}")
        page.keyboard.press(place)
    page.keyboard.press("Control+Enter")
    saved(page)
    page.goto(path)
    assert shown_order(page, ids) == order
    assert [page.locator(f'input[name="place-{i}"]:checked').get_attribute("value") for i in range(5)] == list("21345")


def test_time_counts_while_somebody_is_there_and_no_longer(visit):
    visitor = visit()
    add(visitor, 2)
    page = visitor.open("/")
    page.clock.install()
    page.locator("[autofocus]:focus").wait_for()
    page.keyboard.press("Enter")
    page.locator("#judge.ready").wait_for()
    page.clock.pause_at(datetime.now(UTC) + timedelta(hours=1))  # from here on time is what the test says, however slow the machine
    for step in range(10):
        page.mouse.move(100 + step, 100)
        page.clock.run_for(5_000)
    page.clock.run_for(600_000)  # gone for ten minutes, of which one counts
    page.keyboard.press("1")
    page.keyboard.press("Control+Enter")
    saved(page)
    assert 100 <= (last(visitor).active_seconds or 0) <= 115


# How it looks and what it lets through


def test_views_are_switched_by_keys_and_remembered(visit):
    visitor = visit()
    long = "```python\n" + "\n".join(f"x{i} = {i}" for i in range(120)) + "\n```"
    visitor.team.add(question("Long?"), [long, "# short\n\nprose"])
    page = visitor.at_item()
    body = page.locator(".answer", has_text="x0 = 0")
    assert not body.locator(".formatted .line", has_text="x119 = 119").is_visible()
    page.keyboard.press("f")
    assert body.locator(".formatted .line", has_text="x119 = 119").is_visible()
    page.keyboard.press("v")
    assert page.locator(".raw .line", has_text="# short").is_visible()
    page.keyboard.press("d")
    assert page.locator(".diff").is_visible()
    page.reload()
    assert page.locator("#view-raw").is_checked()


def test_answers_are_shown_at_equal_sizes(visit):
    visitor = visit()
    visitor.team.add(question("Long?"), ["\n".join(f"line {i}" for i in range(30)), "short", "```\n" + "x" * 500 + "\n```"])
    page = visitor.at_item()
    boxes = [page.locator(f"#answer-{i}").bounding_box() for i in range(3)]
    assert len({round(box["width"]) for box in boxes}) == 1
    assert len({round(box["height"]) for box in boxes}) == 1


def test_no_script_of_a_text_runs_and_nothing_is_loaded_from_elsewhere(visit):
    visitor = visit()
    for start in range(0, 100, 25):
        texts = ["\n\n".join(PAYLOADS[i : i + 5]) for i in range(start, start + 25, 5)]
        visitor.team.add(question("\n\n".join(PAYLOADS[start : start + 25])), texts)
    visitor.team.settings.guidelines.write_text("\n\n".join(PAYLOADS), encoding="utf-8")
    page = visitor.at_item()
    for _ in range(4):
        page.locator("#judge.ready").wait_for()
        page.keyboard.press("Shift+B")
        page.keyboard.press("Shift+A")
        page.keyboard.press("d")
        page.locator("dialog[open]").wait_for()
        page.keyboard.press("Escape")
        page.locator("#rationale").fill("\n".join(PAYLOADS))
        page.locator("#saved", has_text=SAVED).wait_for()
        page.reload()
        page.locator("#judge.ready").wait_for()
        assert page.evaluate("window.hit") is None
        page.keyboard.press("Shift+A")
        page.keyboard.press("1")
        page.keyboard.press("Shift+B")
        page.keyboard.press("2")
        with page.expect_navigation():  # the page before says "Saved" of the one before it
            page.keyboard.press("Control+Enter")
    for path in ("/guide", "/history"):
        page.goto(path)
        assert page.evaluate("window.hit") is None
    assert visitor.trouble == []
    assert {address for address in visitor.asked if not address.startswith((visitor.url, "data:"))} == set()


def test_two_models_answer_live_and_the_names_come_after_the_vote(visit):
    parts = [[delta(f"{word} {i} ") for i in range(40)] for word in ("one", "two")]
    with serving(*(streams(*deltas, b"data: [DONE]\n\n") for deltas in parts)) as server:
        listed = [server.endpoint(name=name).model_dump() for name in ("red-model", "blue-model")]
        visitor = visit(endpoints=listed)
        page = visitor.open("/live")
        page.locator("#prompt").fill("Which?")
        page.get_by_role("button", name="Ask both").click()
        page.locator(".formatted").first.wait_for()
        assert "red-model" not in page.content()
        page.get_by_text("A better").click()
        page.get_by_role("button", name="Vote").click()
        assert saved(page) == "A is better"
        assert "red-model" in page.content()
        assert len(visitor.team.judgements()) == 1
        assert visitor.trouble == []
