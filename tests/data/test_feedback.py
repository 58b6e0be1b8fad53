"""What users say of served answers: how it lands in the store, is taken back, and goes when its time is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event

from preftune.data.feedback import Answer, Word, expire, record_consent, rows_since, take
from preftune.data.feedback_results import overview, side_by_side, split_result
from preftune.data.store import Store
from preftune.errors import DataError
from preftune.records import Candidate, Message, Prompt, standing

LATER = datetime.now(UTC) + timedelta(days=31)


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "s.db") as opened:
        yield opened


def answer(text, *, asked="Sort a list.", model="new", split=None):
    return Answer(f"chatcmpl-{asked}-{text}", 0, (Message(role="user", content=asked),), text, model, split)


def say(store, word):
    return take(store, word, consent=record_consent(store, "It is kept."), keep_days=30)


def thumb(rater, value, text="sorted(x)", **about):
    return Word((answer(text, **about),), rater, thumb=value)


def better(rater, place, *, asked="Sort a list.", swap=False):
    two = (answer("one", asked=asked, model="new"), answer("two", asked=asked, model="base"))
    return Word(two[::-1] if swap else two, rater, better=place)


def acceptable(store):
    return [bool(j.acceptable) for j in standing(store.judgements()) if j.ranking]


def test_a_thumb_is_said_once_changed_and_taken_back(store):
    first, again = say(store, thumb("u1", "up")), say(store, thumb("u1", "up"))
    assert (first.new, again.new, first.judgement) == (True, False, again.judgement)
    assert acceptable(store) == [True]
    assert say(store, thumb("u1", "down")).new
    assert acceptable(store) == [False]
    assert say(store, thumb("u1", "up")).new
    assert acceptable(store) == [True]
    assert say(store, thumb("u1", "none")).new
    assert not say(store, thumb("u1", "none")).new
    assert acceptable(store) == []
    assert rows_since(store) == []


def test_an_edit_gives_a_pair_and_a_demonstration_and_a_new_edit_replaces_it(store):
    for text in ("sorted(items)", "sorted(names)"):
        say(store, Word((answer("x.sort()"),), "u1", edit=text, comment="clearer"))
    assert [(p.chosen, p.rejected) for p in store.pairs()] == [("sorted(names)", "x.sort()")]
    assert [(d.text, d.author) for d in store.demonstrations()] == [("sorted(names)", "u1")]


def test_which_is_better_gives_a_pair_with_the_order_that_was_shown(store):
    say(store, better("u1", 0, swap=True))
    assert [(p.chosen, p.rejected) for p in store.pairs()] == [("two", "one")]
    (judgement,) = store.judgements()
    sources = {c.id: c.source for c in store.candidates()}
    assert [sources[c] for c in judgement.presentation] == ["base", "new"]
    say(store, better("u1", "tie", swap=True))
    assert list(store.pairs()) == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (Word((answer("a"), answer("a", model="base")), "u", better=0), "say the same"),
        (Word((answer("a"), answer("b", asked="Else?")), "u", better=0), "different conversations"),
        (Word((answer("a"),), "u", edit=" a\n"), "changes nothing"),
    ],
)
def test_a_word_that_means_nothing_is_refused(store, word, said):
    with pytest.raises(DataError, match=said):
        say(store, word)
    assert store.counts()["prompts"] == 0


def test_what_has_expired_goes_with_all_that_came_by_it_alone(store):
    imported = Prompt(messages=(Message(role="user", content="Known?"),))
    store.add([imported], [Candidate(prompt_id=imported.id, text="old")])
    for word in (thumb("u1", "up"), thumb("u1", "down"), Word((answer("b"),), "u1", edit="c"), thumb("u2", "up", "old", asked="Known?")):
        say(store, word)
    assert expire(store).words == 0
    gone = expire(store, LATER)
    assert (gone.words, gone.changed, gone.demonstrations, gone.candidates, gone.prompts) == (3, 1, 1, 2, 1)
    assert store.counts() == {"prompts": 1, "candidates": 1, "judgements": 0, "demonstrations": 0}


def test_a_word_that_was_changed_or_taken_back_is_not_told_as_a_word_that_was_deleted(store):
    for value in ("up", "down", "up"):
        say(store, thumb("u1", value))
    for value in ("up", "none"):
        say(store, thumb("u2", value))
    assert overview(store).words == {"thumb": 1}
    gone = expire(store, LATER)
    assert (gone.words, gone.changed) == (1, 4)


def test_what_another_user_still_speaks_of_stays_until_that_expires_too(store):
    say(store, thumb("u1", "up"))
    take(store, thumb("u2", "up"), consent=record_consent(store, "It is kept."), keep_days=60)
    assert (expire(store, LATER).words, store.counts()["prompts"], store.counts()["candidates"]) == (1, 1, 1)
    expire(store, LATER + timedelta(days=30))
    assert store.counts() == {"prompts": 0, "candidates": 0, "judgements": 0, "demonstrations": 0}


def test_a_user_who_changes_a_word_is_kept_no_shorter_than_the_last_one_says(store):
    say(store, thumb("u1", "up"))
    take(store, thumb("u1", "down"), consent=record_consent(store, "It is kept."), keep_days=60)
    assert expire(store, LATER).words == 0  # else the later word would speak of one that is gone


def test_a_split_counts_users_and_not_thumbs(store):
    split = ("new", "old")
    for user in range(8):
        for question in range(3):  # further thumbs of the same user are no further outcomes
            say(store, thumb(f"a{user}", "up", asked=f"{user} {question}?", model="new", split=split))
            say(store, thumb(f"b{user}", "down", asked=f"{user} {question}?", text="no", model="old", split=split))
    say(store, thumb("c", "up", asked="pinned?", model="old"))  # who named the model was not drawn
    found = split_result(store, "new", "old")
    assert (found.a.users, found.a.up, found.b.users, found.b.down) == (8, 24, 8, 24)
    assert (found.verdict.wins, found.verdict.n, found.verdict.preferred) == (8, 8, "A")
    assert split_result(store, "old", "new").verdict.losses == 8


def test_side_by_side_counts_each_conversation_once(store):
    for place in range(3):
        say(store, better("u1", 0, asked=f"{place}?"))
        say(store, better("u2", 1, asked=f"{place}?"))
    say(store, better("u1", "tie", asked="else?"))
    seen = side_by_side(store, "new", "base").verdict
    assert (seen.wins, seen.ties, seen.losses) == (3, 1, 0)
    assert "Side by side. A = base, B = new" in "\n".join(overview(store).lines())


def test_the_overview_says_of_each_split_what_is_said_of_it_alone_and_reads_once(store):
    for split in (("new", "old"), ("new", "third")):
        say(store, thumb("u1", "up", asked=f"{split}?", split=split))
        say(store, thumb("u2", "down", asked=f"{split}?", text="no", model=split[1], split=split))
    say(store, better("u3", 0))
    asked: list[str] = []
    with store.reading() as connection:
        engine = connection.engine
    event.listen(engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    seen = overview(store)
    assert sum("FROM feedback" in statement for statement in asked) == 2  # what stands, and the order of first words
    assert seen.splits == [split_result(store, "new", "old"), split_result(store, "new", "third")]
    assert seen.sides == [side_by_side(store, "base", "new")]
