"""What the report on held-out pairs says, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preftune.data.calibration import cross_fitted_temperatures, fit_temperature
from preftune.data.pair_report import human_agreement, pair_report, raters_said
from preftune.errors import DataError
from preftune.records import Message, Pair


def pair(number: int, chosen: str = "yes, it is", rejected: str = "no, it is", **more) -> Pair:
    asked = more.pop("asked", "what is the best of the two and how do I know it?")
    return Pair(messages=(Message(role="user", content=asked),), chosen=chosen, rejected=rejected, group=f"p{number}", **more)


def test_a_report_by_hand():
    pairs = [
        pair(0, chosen="a" * 100, rejected="b" * 95, kind="code", confidence=4 / 5),
        pair(1, chosen="a" * 100, rejected="b" * 10, kind="code", weight=1 / 3, confidence=3 / 5),
        pair(2, chosen="a" * 10, rejected="b" * 100, confidence=2 / 3),
        pair(3, asked="wie ist das und was ist nicht gut für mich?", confidence=2 / 3),
    ]
    told = pair_report(pairs, [1.0, -0.5, 0.0, 2.0])
    assert told["correct"] == [1.0, 0.0, 0.5, 1.0]
    assert told["accuracy"] == pytest.approx(0.625)
    assert told["longer_wins"] == pytest.approx(0.75)  # longer, longer, shorter, longer
    assert told["same_length"]["n"] == 2
    assert {k: v["value"] for k, v in told["by_kind"].items()} == {"code": 0.5, "not said": 0.75}
    assert {k: v["n"] for k, v in told["by_language"].items()} == {"de": 1, "en": 3}
    assert {k: v["value"] for k, v in told["by_raters"].items()} == {"one rater": 0.75, "split": 0.0, "unanimous": 1.0}
    assert told["calibration"] is None  # four prompts are too few


def test_one_rater_is_not_unanimous():
    assert [raters_said(pair(0, confidence=c, weight=w)) for c, w in ((2 / 3, 1.0), (3 / 4, 1.0), (3 / 5, 1 / 3))] == [
        "one rater",
        "unanimous",
        "split",
    ]


def test_the_temperature_of_a_model_that_is_too_sure_is_found():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-true))
    margins = np.where(right, true, -true) * 3  # speaks three times too loud
    assert fit_temperature(margins) == pytest.approx(3.0, rel=0.05)
    told = pair_report([pair(n) for n in range(2000)], margins[:2000])
    assert told["calibration"]["ece_after"] < 0.05 < told["ece"]
    assert sum(b["count"] for b in told["calibration"]["bins_after"]) == 2000


def test_no_pair_is_judged_by_a_temperature_that_it_helped_to_fit():
    margins, clusters = np.array([1.0, -1.0, 2.0, 0.5, -0.3, 1.5]), np.array([0, 0, 1, 2, 3, 4])
    found = cross_fitted_temperatures(margins, clusters, folds=5)
    assert found[0] == found[1] == pytest.approx(fit_temperature(margins[2:]))
    with pytest.raises(DataError, match="all pairs are of one prompt"):
        cross_fitted_temperatures([1.0, 2.0], [7, 7])


def test_margins_that_are_all_right_or_huge_end_at_a_bound():
    assert 0 < fit_temperature([1.0, 2.0]) < 0.05
    assert math.isfinite(fit_temperature([1e6, -1e6]))


def test_agreement_of_people_and_the_error_that_it_implies():
    told = human_agreement({"word_pairs": 200, "agreeing": 164})
    assert told is not None
    assert told["value"] == pytest.approx(0.82)
    assert (told["error"], told["ceiling"]) == pytest.approx((0.1, 0.9))
    assert human_agreement({"word_pairs": 0, "agreeing": 0}) is None
    assert human_agreement({}) is None
