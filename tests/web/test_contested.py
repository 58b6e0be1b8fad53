"""Which prompts raters differ on: what is looked at again when somebody has said something since, and when rows have gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.web_team import answers_to, question

from preftune.data import tables
from preftune.data.store import Store
from preftune.records import Judgement
from preftune.web import contested
from preftune.web.contested import Contested


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store."""
    address = tmp_path / "s.db" if request.param == "sqlite" else request.getfixturevalue("fresh_postgres")()
    with Store.create(address) as made:
        yield made


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many prompts each look read."""
    found: list[int] = []
    real = contested.disputes_of

    def counted(connection: object, ids: Sequence[str]) -> object:
        found.append(len(ids))
        return real(connection, ids)  # type: ignore[arg-type]

    monkeypatch.setattr(contested, "disputes_of", counted)
    return found


def say(store: Store, text: str, *words: str, start: int = 0) -> str:
    """Let raters rank a prompt's two answers, each as the word says: "ab" for the first; return the prompt's id."""
    prompt = question(text)
    answers = dict(zip("ab", answers_to(prompt, ["one", "two"]), strict=True))
    said = [
        Judgement(prompt_id=prompt.id, ranking=tuple((answers[letter].id,) for letter in word), rater=f"r{n}")
        for n, word in enumerate(words, start)
    ]
    store.add([prompt], answers.values(), said)
    return prompt.id


def test_a_second_look_reads_what_was_judged_since_and_no_more(store: Store, looks: list[int]) -> None:
    first, agreed = say(store, "first", "ab", "ba"), say(store, "agreed", "ab", "ab")
    seen = Contested(store)
    assert seen.marked() == [(first, True)]
    assert looks == [1]  # both say the very same of the other prompt
    assert (seen.marked(), looks[-1]) == ([(first, True)], 0)
    say(store, "agreed", "ba", start=2)
    assert (sorted(seen.marked()), looks[-1]) == (sorted([(first, True), (agreed, True)]), 1)
    say(store, "first", "ab", start=2)
    assert seen.marked() == Contested(store).marked()


def test_where_judgements_have_gone_all_is_read_again(store: Store) -> None:
    first, other = say(store, "first", "ab", "ba"), say(store, "other", "ab", "ba")
    seen, table = Contested(store), tables.judgements
    assert len(seen.marked()) == 2
    with store.writer() as writer:
        writer.connection.execute(table.delete().where(table.c.prompt_id == other, table.c.rater == "r1"))
    assert seen.marked() == [(first, True)]
    with store.writer() as writer:  # one goes and another comes: as many as before, maybe with the same number
        writer.connection.execute(table.delete().where(table.c.prompt_id == first, table.c.rater == "r1"))
    say(store, "other", "ba", start=3)
    assert seen.marked() == [(other, True)]


def test_of_a_large_store_the_prompts_with_the_newest_judgements_are_listed(store: Store, looks: list[int]) -> None:
    first, second, third = (say(store, text, "ab", "ba") for text in ("first", "second", "third"))
    everything = Contested(store, most=6)
    assert (sorted(everything.marked()), everything.newest) == (sorted((name, True) for name in (first, second, third)), None)
    seen = Contested(store, most=3)  # the third prompt's two, and one of the second's, which is looked at whole
    assert (sorted(seen.marked()), seen.newest) == (sorted([(second, True), (third, True)]), 3)
    say(store, "first", "ab", start=2)
    assert (sorted(seen.marked()), looks[-1]) == (sorted((name, True) for name in (first, second, third)), 1)
    for text in ("fourth", "fifth"):  # more than would be looked at first
        say(store, text, "ab", "ba")
    assert len(seen.marked()) == 2
    assert len(everything.marked()) == 5
