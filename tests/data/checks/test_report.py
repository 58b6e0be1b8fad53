"""What the checks count, and the sentences that they give."""

from __future__ import annotations

from pathlib import Path

import pytest

from preftune.data.checks import DataReport, Votes, check_pairs, check_store, count_votes
from preftune.data.store import Store
from preftune.records import Candidate, Demonstration, Judgement, Message, Pair, Prompt


def pair(question: str = "q", chosen: str = "good", rejected: str = "evil", weight: float = 1.0) -> Pair:
    return Pair(messages=(Message(role="user", content=question),), chosen=chosen, rejected=rejected, weight=weight)


def judgement(*tiers: str, rater: str = "ann", supersedes: str | None = None) -> Judgement:
    """Return a judgement from tiers of one-letter candidates, such as "a", "bc"."""
    return Judgement(prompt_id="p", ranking=tuple(tuple(tier) for tier in tiers), rater=rater, supersedes=supersedes)


def test_the_counts_are_those_of_a_hand_made_set() -> None:
    report = check_pairs(
        [
            pair("one", "abc", "ab"),  # longer wins
            pair("one", "abc", "ab"),  # a duplicate
            pair("one", "ab", "abc", 0.5),  # the opposite, contested
            pair("two", "ab", "cd"),  # equal lengths
            pair("two", "", "abcd"),  # empty
            pair("six", "ab", "ab"),  # equal
        ]
    )
    assert (report.pairs, report.prompts, report.duplicates, report.contradictions) == (6, 3, 1, 1)
    assert (report.contested, report.empty, report.equal) == (1, 1, 1)
    assert report.duplicate_share == pytest.approx(1 / 6)
    assert report.longer_wins == pytest.approx((1 + 1 + 0 + 0.5 + 0 + 0.5) / 6)
    assert report.lengths["chosen"] == {"p05": 0, "p50": 2, "p95": 3, "max": 3}
    assert report.lengths["prompt"]["max"] == 3
    assert report.leaked is None


def test_every_problem_has_a_sentence() -> None:
    bad = check_pairs(
        [pair("one", "ab", "cd"), pair("one", "ab", "cd"), pair("one", "cd", "ab"), pair("two", "", "a"), pair("two", "a", "a")]
    )
    assert [problem.split(" ", 1)[1] for problem in bad.problems] == [
        "pairs are few: expect wide intervals and little effect under 100.",
        "of the pairs are exact duplicates, which count more than once in training.",
        "two of answers is preferred both ways. See whether your raters read the guidelines alike.",
        "pair has an empty answer. Take them out.",
        "pair has two equal answers, from which nothing can be learned. Take them out.",
    ]
    assert bad.lines()[-5:] == [f"Problem: {problem}" for problem in bad.problems]


def test_good_data_has_no_problem() -> None:
    report = check_pairs(pair(f"question {n}", "a" * (2 + n % 2), "b" * (3 - n % 2)) for n in range(200))
    assert report.problems == ()
    assert report.lines()[-1] == "No problem was found."
    assert "the longer answer wins in 50.0% of the pairs" in "\n".join(report.lines())


@pytest.mark.parametrize(("chosen", "rejected", "which"), [("long answer", "short", "longer"), ("short", "long answer", "shorter")])
def test_a_length_bias_is_named_with_its_direction(chosen: str, rejected: str, which: str) -> None:
    [problem] = check_pairs(pair(f"{n}", chosen, rejected) for n in range(200)).problems
    assert problem.startswith(f"the {which} answer wins in 100.0% of the pairs")


def test_a_leak_between_two_sets_is_counted_also_where_prompts_are_nearly_alike() -> None:
    ten = "one two three four five six seven eight nine ten"
    report = check_pairs([pair(ten), pair("quite another thing")], held_out=[pair(ten.upper() + " eleven")])
    assert report.leaked == 1
    assert report.problems[-1].startswith("1 training prompt is nearly alike held-out ones")
    assert check_pairs([pair(ten)], held_out=[]).leaked == 0


def test_no_pairs_is_a_problem_and_no_error() -> None:
    report = check_pairs([])
    assert (report.pairs, report.longer_wins, report.longer_wins_interval) == (0, 0.5, (0.0, 1.0))
    assert report.problems == ("there are no pairs, so there is nothing to learn. Collect strict preferences.",)
    assert report.lines()[0] == "0 pairs on 0 prompts"


def test_votes_add_up_by_hand() -> None:
    first = judgement("a", "bc")
    votes = count_votes(
        [
            first,
            judgement("c", "a", rater="ann", supersedes=first.id),  # ann changed her mind: only c over a stands
            judgement("a", "c", rater="bob"),  # against: an even split
            judgement("de", rater="bob"),  # a tie
            judgement("d", "a", rater="bob"),
            judgement("a", "d", rater="cem"),
            judgement("d", "a", rater="dan"),  # 2 against 1: a contradiction that is decided
        ]
    )
    assert (votes.judgements, votes.superseded, votes.compared) == (7, 1, 3)
    assert (votes.ties, votes.even_splits, votes.contradictions) == (1, 1, 2)


def test_a_stores_check_counts_ties_and_contradictions_that_its_pairs_no_longer_show(tmp_path: Path) -> None:
    prompt = Prompt(messages=(Message(role="user", content="q"),))
    candidates = [Candidate(prompt_id=prompt.id, text=t) for t in ("a", "b", "c")]
    a, b, c = (candidate.id for candidate in candidates)

    def said(*tiers: tuple[str, ...], rater: str) -> Judgement:
        return Judgement(prompt_id=prompt.id, ranking=tiers, rater=rater)

    with Store.create(tmp_path / "s.db") as store:
        store.add([prompt], candidates, [said((a, b), rater="ann")])
        assert check_store(store).problems[0].startswith("the one comparison is a tie or an even split, so there is nothing to learn")
        store.add([], [], [said((a,), (c,), rater="ann"), said((a,), (c,), rater="bob"), said((c,), (a,), rater="cem")])
        report = check_store(store)
    assert report.votes is not None
    assert (report.pairs, report.contested, report.contradictions, report.votes.ties) == (1, 1, 1, 1)
    assert "4 judgements compare 2 twos of answers: 1 tie, 0 even splits" in report.lines()
    assert any("preferred both ways" in problem for problem in report.problems)


def test_the_report_is_plain_values_for_json() -> None:
    values = check_pairs([pair()]).as_dict()
    assert set(values) == set(DataReport.__dataclass_fields__)
    assert values["lengths"]["chosen"]["p50"] == 4


def test_agreement_noise_and_circles_of_named_raters_are_told(tmp_path: Path) -> None:
    prompts = [Prompt(messages=(Message(role="user", content=f"question {n * 7} of {n}"),)) for n in range(40)]
    candidates = {p.id: [Candidate(prompt_id=p.id, text=t) for t in "abc"] for p in prompts}
    judgements = []
    for n, prompt in enumerate(prompts):
        a, b, c = (candidate.id for candidate in candidates[prompt.id])
        for rater, ranking in (("ann", [(a,), (b,)]), ("bob", [(b,), (a,)] if n % 4 == 0 else [(a,), (b,)])):
            judgements.append(Judgement(prompt_id=prompt.id, ranking=tuple(ranking), rater=rater))
        if n < 4:
            judgements += [Judgement(prompt_id=prompt.id, ranking=r, rater="cem") for r in (((b,), (c,)), ((c,), (a,)))]
    with Store.create(tmp_path / "s.db") as store:
        store.add(prompts, [c for found in candidates.values() for c in found], judgements)
        report = check_store(store)
    assert report.agreement is not None
    assert report.noise is not None
    assert (report.raters, report.agreement.value, report.agreement.n) == (3, 0.75, 40)
    assert report.noise.error == pytest.approx((1 - 0.5**0.5) / 2)  # 0.75 = (1 − e)² + e²
    # On prompt 0 ann and bob are evenly split, so only the circles of prompts 1 to 3 are closed.
    assert (report.cycles.triples, report.cycles.cyclic) == (3, 3)
    text = "\n".join(report.lines())
    assert "two of 3 raters agree in 75.0%" in text
    assert "label noise: 14.6% of the single judgements are wrong" in text
    assert "3 of 3 triples of answers go in a circle" in text


def test_raters_who_agree_no_more_than_by_chance_are_a_problem(tmp_path: Path) -> None:
    prompts = [Prompt(messages=(Message(role="user", content=f"question {n * 7} of {n}"),)) for n in range(200)]
    candidates, judgements = [], []
    for n, prompt in enumerate(prompts):
        two = [Candidate(prompt_id=prompt.id, text=t) for t in "ab"]
        said = [tuple((c.id,) for c in (two if (n // k) % 2 else two[::-1])) for k in (1, 2)]
        candidates += two
        judgements += [Judgement(prompt_id=prompt.id, ranking=r, rater=f"rater {k}") for k, r in enumerate(said)]
    with Store.create(tmp_path / "s.db") as store:
        store.add(prompts, candidates, judgements)
        report = check_store(store)
    assert report.agreement is not None
    assert report.agreement.value == 0.5
    assert any(problem.startswith("raters agree in only 50.0%") for problem in report.problems)


def test_without_names_agreement_is_unknown_and_what_must_be_wrong_is_told(tmp_path: Path) -> None:
    prompt = Prompt(messages=(Message(role="user", content="q"),))
    a, b = (Candidate(prompt_id=prompt.id, text=t) for t in "ab")
    both = [Judgement(prompt_id=prompt.id, ranking=((x.id,), (y.id,))) for x, y in ((a, b), (b, a))]
    with Store.create(tmp_path / "s.db") as store:
        store.add([prompt], [a, b], both)
        lines = check_store(store).lines()
    assert "no two raters that are named judged the same two answers, so how far they agree is unknown" in lines
    assert "at least 1 judgement must be wrong, one in each contradiction" in lines


def test_gold_judgements_are_no_data_and_demonstrations_alone_are_no_preference(tmp_path: Path) -> None:
    prompt = Prompt(messages=(Message(role="user", content="q"),))
    a, b = (Candidate(prompt_id=prompt.id, text=t) for t in "ab")
    gold = Judgement(prompt_id=prompt.id, ranking=((a.id,), (b.id,)), rater="ann", picked_by="gold")
    with Store.create(tmp_path / "s.db") as store:
        store.add([prompt], [a, b], [gold], [Demonstration(prompt_id=prompt.id, text="c")])
        report = check_store(store)
    assert report.votes == Votes()
    assert report.problems == ("there are no pairs, so there is no preference to learn, only 1 demonstration. Collect strict preferences.",)
