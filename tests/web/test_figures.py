"""What the owner's figures are measured on: all judgements of a store, or of a large one those on some of its prompts."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.web_team import answers_to, make_team, question

from preftune.data.agreement import Agreement, agreement
from preftune.data.store import Store
from preftune.records import GOLD, Judgement, Prompt
from preftune.web import figures, items
from preftune.web.figures import measure

PROMPTS, RATERS = 120, 6


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with three answers a prompt, which raters order with noise, with ties, times, words taken back, and two programs."""
    address = tmp_path_factory.mktemp("s") / "s.db" if request.param == "sqlite" else request.getfixturevalue("fresh_postgres")()
    with Store.create(address) as made:
        fill(made)
        yield made


def fill(store: Store) -> None:
    chance = random.Random(0)
    for n in range(PROMPTS):
        prompt = Prompt(messages=question(f"question {n}").messages, kind=("naming", "errors", "")[n % 3])
        candidates = answers_to(prompt, [f"{word} answer {n}" for word in ("a first", "a second and longer", "a third")])
        said = []
        for rater in (*(f"r{number}" for number in range(RATERS)), "judge:big", "reward:small"):
            if chance.random() < 0.4:
                continue
            ids = sorted((c.id for c in candidates), key=lambda c: (int(c, 16) % 7) + chance.uniform(0, 6))
            tiers = (tuple(ids[:2]), (ids[2],)) if chance.random() < 0.1 else tuple((c,) for c in ids[: chance.choice([2, 3])])
            shown = tuple(chance.sample([c for tier in tiers for c in tier], sum(map(len, tiers))))
            by = GOLD if n % 20 == 0 else "random"
            about = {"picked_by": by, "presentation": shown, "active_seconds": round(chance.uniform(0.1, 60), 1)}
            said.append(Judgement(prompt_id=prompt.id, ranking=tiers, rater=rater, strength=chance.choice([None, 1, 2]), **about))
            if chance.random() < 0.1:
                turned = {"ranking": tiers[::-1], "supersedes": said[-1].id}
                said.append(said[-1].model_copy(update=turned))
        store.add([prompt], candidates, said)


def of_people(store: Store, words: list[Judgement]) -> Agreement:
    """What `agreement` says of the people among these judgements, with all that a store knows of their prompts and answers."""
    candidates = list(store.candidates())
    return agreement(
        [word for word in words if ":" not in word.rater],
        kinds={prompt.id: prompt.kind for prompt in store.prompts()},
        lengths={c.id: len(c.text) for c in candidates},
        sources={c.id: c.source for c in candidates},
    )


def test_a_small_store_is_measured_whole(store: Store) -> None:
    words = list(store.judgements())
    found = measure(store, figures.MOST)
    assert found.people == of_people(store, words)
    assert (found.measured, found.stored) == (len(words), len(words))
    assert found.num_judgements == {name: sum(word.rater == name for word in words) for name in ("judge:big", "reward:small")}
    assert found.people.coefficients.alpha is not None
    assert found.people.times is not None
    assert found.people.times.too_fast


def test_of_a_large_store_so_many_judgements_are_measured_with_all_of_their_prompts(store: Store) -> None:
    words = list(store.judgements())
    found = measure(store, 200)
    most_of_one = max(sum(word.prompt_id == prompt.id for word in words) for prompt in store.prompts())
    assert 200 < found.measured <= 200 + most_of_one
    assert found.stored == len(words)
    drawn = sorted({word.prompt_id for word in words})
    taken: list[Judgement] = []
    while len(taken) < found.measured:  # prompt by prompt, in the order of the ids
        prompt_id = drawn.pop(0)
        taken += [word for word in words if word.prompt_id == prompt_id]
    order = {word.id: place for place, word in enumerate(words)}
    assert found.people == of_people(store, sorted(taken, key=lambda word: order[word.id]))
    assert measure(store, 200) == found
    whole = measure(store, figures.MOST).people.pairwise.strict
    part = found.people.pairwise.strict
    assert whole is not None
    assert part is not None
    assert part.low < whole.value < part.high


def test_all_gold_judgements_count_however_large_the_store(tmp_path: Path) -> None:
    team = make_team(tmp_path, "Ann")
    fill(team.store)
    by_id = {candidate.id: candidate for candidate in team.store.candidates()}
    golden = {word.prompt_id for word in team.store.judgements() if word.picked_by == GOLD}
    for prompt_id in golden:
        first, *others = sorted(c.id for c in by_id.values() if c.prompt_id == prompt_id)
        items.add_gold(team.store, team.people["Olga"], prompt_id, [first, *others], [[first], others])
    found = measure(team.store, 10).people.gold
    assert found == measure(team.store, figures.MOST).people.gold
    assert set(found) == {f"r{number}" for number in range(RATERS)}
    assert sum(gold.share.n for gold in found.values()) > 10
    team.store.close()


def test_a_page_says_what_it_was_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = make_team(tmp_path, "Ann")
    fill(team.store)
    browser, stored = team.browser("Olga"), len(team.judgements())
    for path in ("agreement", "position", "time", "gold"):
        assert "drawn at random" not in browser.get(f"/owner/{path}").words
    monkeypatch.setattr(figures, "MOST", 100)
    team.app.state.owner_figures = None
    measured = measure(team.store, 100).measured
    for path in ("agreement", "position", "time"):
        assert f"Measured on {measured:,} of {stored:,} judgements, those on prompts drawn at random" in browser.get(f"/owner/{path}").words
    assert "drawn at random" not in browser.get("/owner/gold").words  # that one is of all
    team.store.close()


def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    peaks = []
    with Store.create(tmp_path / "s.db") as store:
        for copies in (1, 3):
            for copy in range(copies):
                for start in range(0, 2_000, 500):
                    prompts = [question(f"{copies} {copy} {n}") for n in range(start, start + 500)]
                    candidates = [answers_to(prompt, ["one", "two"]) for prompt in prompts]
                    said = [
                        Judgement(prompt_id=prompt.id, ranking=((first.id,), (second.id,)), rater=f"r{n}")
                        for prompt, (first, second) in zip(prompts, candidates, strict=True)
                        for n in (1, 2)
                    ]
                    store.add(prompts, [c for two in candidates for c in two], said)
            tracemalloc.start()
            found = measure(store, 1_000)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert found.measured == 1_002  # two a prompt, up to the one in which the 1,001st is
    assert (found.stored, peaks[1] < 1.1 * peaks[0]) == (16_000, True), peaks
