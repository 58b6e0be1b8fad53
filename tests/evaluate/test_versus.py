"""What verdicts come to: counted by hand, and the judges who give them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preftune.data.store import Store
from preftune.evaluate.contenders import Answers
from preftune.evaluate.judging import PeopleJudge, ProgramJudge, Row, family_of
from preftune.evaluate.versus import Compared, beforehand, board, stand, with_people
from preftune.evaluate.versus_words import lines, said_beforehand
from preftune.records import Candidate, Judgement, Message, Prompt


def compared(scores: list[float | None], *, a: str = "a", b: str = "b", clusters: list[int] | None = None) -> Compared:
    rows = [Row(prompt, score) for prompt, score in zip(clusters or range(len(scores)), scores, strict=True)]
    texts = ["some words"] * len(scores)
    return Compared(a, b, texts, texts, rows)


def test_wins_ties_and_losses_are_counted_by_prompt():
    (found,) = stand([compared([1.0] * 60 + [0.5] * 20 + [0.0] * 20 + [None] * 3)])
    assert (found["wins"], found["ties"], found["losses"], found["unread"]) == (60, 20, 20, 3)
    assert found["rate"]["value"] == pytest.approx(0.7)
    assert found["p_value"] == pytest.approx(2 * sum(math.comb(80, k) for k in range(21)) / 2**80)
    assert found["said"] == "A"


def test_20_wins_of_20_are_no_certainty():
    (found,) = stand([compared([1.0] * 20)])
    assert (found["rate"]["value"], found["rate"]["high"]) == (1.0, 1.0)
    assert found["rate"]["low"] == pytest.approx(0.838875, abs=1e-6)
    assert found["length_controlled"]["rate"]["low"] < 0.84
    assert found["said"] == "A"


def test_what_the_numbers_do_not_tell_is_not_told():
    (found,) = stand([compared([1.0] * 55 + [0.0] * 45)])
    assert found["said"] == "cannot tell"
    assert found["would_take"] == 783  # for 55 % at 80 % power
    (turned,) = stand([compared([0.0] * 70 + [1.0] * 30)])
    assert turned["said"] == "B"


def test_many_verdicts_on_few_prompts_are_few():
    # 100 verdicts, all of a prompt alike: 10 prompts, 8 won.
    scores = [1.0] * 80 + [0.0] * 20
    (found,) = stand([compared(scores, clusters=[i // 10 for i in range(100)])])
    assert (found["prompts"], found["verdicts"], found["wins"]) == (10, 100, 8)
    assert found["p_value"] == pytest.approx(112 / 1024)  # 2 · P(8 or more of 10)
    assert found["said"] == "cannot tell"


def test_several_comparisons_are_corrected_for_their_number():
    close = [1.0] * 62 + [0.0] * 38  # p = 0.021 alone
    alone = stand([compared(close)])[0]
    among = stand([compared(close), compared([1.0, 0.0] * 50, b="c"), compared([1.0, 0.0] * 50, b="d")])[0]
    assert (alone["said"], among["said"]) == ("A", "cannot tell")
    assert among["p_adjusted"] == pytest.approx(3 * alone["p_value"])


def test_a_judge_that_prefers_a_place_ties_and_is_found_out():
    rows = [Row(i, 1.0, 0.0, twice=True) for i in range(40)] + [Row(40 + i, 1.0, 1.0, twice=True) for i in range(60)]
    texts = ["text"] * 100
    (found,) = stand([Compared("a", "b", texts, texts, rows)])
    assert (found["wins"], found["ties"]) == (60, 40)
    assert found["orders"]["consistency"]["value"] == pytest.approx(0.6)
    assert found["orders"]["first"]["value"] == pytest.approx(140 / 200)  # a first: 100 of 100; b first: 40 of 100
    assert found["orders"]["loose"]
    told = "\n".join(lines({"contenders": ["a", "b"], "judge": "j", "beforehand": beforehand(100), "prompts": 100, "pairs": [found],
                            "leaderboard": None, "notes": [], "drift": None}))  # fmt: skip
    assert "below 80 %: its verdicts hang much on which answer is shown first" in told
    assert "A is better." in told


def test_the_order_of_three_is_told_with_its_doubts():
    strong = compared([1.0] * 45 + [0.0] * 15, a="a", b="b")
    found = board([strong, compared([1.0] * 44 + [0.0] * 16, a="a", b="c"), compared([1.0, 0.0] * 30, a="b", b="c")])
    assert found[0]["name"] == "a"
    assert (found[0]["rank_low"], found[0]["rank_high"]) == (1, 1)
    assert {(one["rank_low"], one["rank_high"]) for one in found[1:]} == {(2, 3)}


def test_how_many_prompts_it_takes_is_said_beforehand():
    assert beforehand(200)["finds"] == pytest.approx(0.598468, abs=1e-6)
    assert "59.8 % or more is found four times of five" in said_beforehand(beforehand(200))
    assert beforehand(2)["finds"] is None
    assert "too few to find any difference" in said_beforehand(beforehand(2))


PROMPTS = [Prompt(messages=(Message(role="user", content=f"question {i}"),)) for i in range(4)]
ONE = Answers("one", ["good", "good", "same", "good"], [True] * 4)
OTHER = Answers("other", ["bad", "bad", "same", "bad"], [True] * 4)


def people(tmp_path, words: list[tuple[int, str, str]]) -> PeopleJudge:
    """A store in which raters said of prompt i that the first text is better than the second."""
    store = Store.create(tmp_path / "store.db")
    candidates = [Candidate(prompt_id=p.id, text=text) for p in PROMPTS for text in ("good", "bad")]
    said = []
    for number, (place, better, worse) in enumerate(words):
        ids = tuple(Candidate(prompt_id=PROMPTS[place].id, text=text).id for text in (better, worse))
        ranking = (ids,) if better == "tie" else tuple((one,) for one in ids)
        said.append(Judgement(prompt_id=PROMPTS[place].id, ranking=ranking, rater=f"rater {number}"))
    store.add(prompts=PROMPTS, candidates=candidates, judgements=said)
    return PeopleJudge(store)


def test_people_judge_by_what_they_said_of_just_these_answers(tmp_path):
    judge = people(tmp_path, [(0, "good", "bad"), (0, "bad", "good"), (0, "good", "bad"), (1, "bad", "good")])
    rows = judge.compare(PROMPTS, ONE, OTHER)
    assert [(row.prompt, row.verdict) for row in rows if not row.alike] == [(0, 1.0), (0, 0.0), (0, 1.0), (1, 0.0)]
    assert [row.prompt for row in rows if row.alike] == [2]
    assert judge.majority(PROMPTS, ONE, OTHER) == {0: 1.0, 1: 0.0}
    turned = [row.verdict for row in judge.compare(PROMPTS, OTHER, ONE) if not row.alike]
    assert turned == [0.0, 1.0, 0.0, 1.0]
    judge.close()


def test_a_judge_is_measured_by_what_people_say():
    texts = ["x"] * 60
    rows = [Row(i, 1.0 if i < 45 else 0.0) for i in range(60)]
    found = with_people(Compared("a", "b", texts, texts, rows), {i: float(i < 40) for i in range(60)})
    assert found is not None
    assert found["agreement"]["value"] == pytest.approx(55 / 60)
    # κ = (po − pe) / (1 − pe), pe = .75 · 40/60 + .25 · 20/60
    assert found["kappa"]["value"] == pytest.approx((55 / 60 - 7 / 12) / (5 / 12))
    assert with_people(Compared("a", "b", texts, texts, rows), {}) is None


def test_a_program_judges_and_what_it_cannot_judge_is_counted(tmp_path):
    source = "def f(prompts, completions, facts):\n    return [len(c) if c != 'bad' else 1 / 0 for c in completions]\n"
    (tmp_path / "p.py").write_text(source, encoding="utf-8")
    judge = ProgramJudge(tmp_path / "p.py", "f")
    rows = judge.compare(PROMPTS, ONE, OTHER)
    judge.close()
    assert [row.verdict for row in rows] == [None, None, 0.5, None]
    assert "f fails on 3 answers of other" in judge.notes[0]
    assert "ZeroDivisionError" in judge.notes[0]


def test_a_family_is_read_from_names():
    assert family_of("models/Qwen3-8B-tuned") == "qwen"
    assert family_of("my-model", "llama") == "llama"
    assert family_of("philosophy", "yielding") is None


def test_all_verdicts_of_one_prompt_still_have_an_interval():
    (found,) = stand([compared([1.0] * 5, clusters=[0] * 5)])
    assert found["rate"]["low"] < 0.25
    assert np.isfinite(found["length_controlled"]["rate"]["low"])
