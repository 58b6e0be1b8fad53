"""How good a judge of pairs is on pairs that it has not learned from, and among which of them: a reward model, or anything that scores.

A pair is right where its chosen answer scores higher, half right where both score the same. Each share has a 95 % interval that takes
pairs of one prompt as hanging together (`data/intervals.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preftune.data.agreement import Pairwise, label_noise
from preftune.data.calibration import Floats, cross_fitted_temperatures, ece, fit_temperature, reliability_bins
from preftune.data.checks.language import guess_language
from preftune.data.intervals import Share, clustered_share, wilson
from preftune.records import Pair

BINS = 5  # of equal mass
SAME_LENGTH = 0.1  # answers whose lengths differ by no more than this share of the longer one
ONE_WORD = 2 / 3  # the confidence of a pair on which one rater spoke
FEWEST_CALIBRATED = 10  # pairs; of fewer a temperature says nothing
SURE_AT_MOST = 700.0  # beyond, e^−x is 0


def pair_report(pairs: Sequence[Pair], margins: ArrayLike) -> dict[str, Any]:
    """Return what the margins say of these pairs, for a manifest.

    margins: score of the chosen less that of the rejected answer, one a pair, at least one. Keys: accuracy with its interval and that of
    "the longer wins"; by kind, by language (a guess by words), by what the raters said, and among answers of about the same length;
    calibration before and after a temperature that was fitted on other prompts, where there are enough pairs.
    """
    d = np.asarray(margins, dtype=np.float64)
    right = (np.sign(d) + 1) / 2
    clusters = _prompts(pairs)
    lengths = np.array([[len(p.chosen), len(p.rejected)] for p in pairs], dtype=np.float64).reshape(-1, 2)
    alike = np.abs(lengths[:, 0] - lengths[:, 1]) <= SAME_LENGTH * lengths.max(axis=1)
    longer = (np.sign(lengths[:, 0] - lengths[:, 1]) + 1) / 2
    share = clustered_share(right, clusters)
    assert share is not None
    return {
        "n": len(pairs),
        "accuracy": share.value,
        "accuracy_interval": [share.low, share.high],
        "correct": right.tolist(),
        "margins": d.tolist(),
        "longer_wins": float(longer.mean()),
        "longer_wins_interval": _ends(clustered_share(longer, clusters)),
        "same_length": _told(clustered_share(right[alike], clusters[alike])),
        "by_kind": _by(pairs, right, clusters, lambda p: p.kind or "not said"),
        "by_language": _by(pairs, right, clusters, lambda p: guess_language(p.messages[-1].content)),
        "by_raters": _by(pairs, right, clusters, raters_said),
        "ece": ece(_sure(d), right, bins=BINS),
        "calibration": _calibration(d, right, clusters) if np.unique(clusters).size >= FEWEST_CALIBRATED else None,
    }


def raters_said(pair: Pair) -> str:
    """Return who stands behind a pair: "one rater", several who were "unanimous", or "split" ones."""
    if pair.weight < 1:
        return "split"
    return "unanimous" if pair.confidence > ONE_WORD + 1e-6 else "one rater"


def human_agreement(votes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how often two raters who both preferred one of two answers preferred the same, and what that says of one rater's word.

    votes: of a snapshot's manifest. error: the share of words that are wrong, if raters err alike and apart; ceiling: what a perfect
    model would reach against one rater. None where nothing was judged twice. The interval takes pairs of raters as independent.
    """
    if not votes.get("word_pairs"):
        return None
    agreeing, total = votes["agreeing"], votes["word_pairs"]
    share = Share(agreeing / total, *wilson(agreeing, total), total)
    noise = label_noise(Pairwise(strict=share, with_ties=None, twos=total))
    assert noise is not None
    return asdict(share) | {"error": noise.error, "ceiling": noise.ceiling}


def _prompts(pairs: Sequence[Pair]) -> NDArray[np.int64]:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(p.group or p.messages, len(numbers)) for p in pairs], dtype=np.int64)


def _by(pairs: Sequence[Pair], right: Floats, clusters: NDArray[np.int64], name: Callable[[Pair], str]) -> dict[str, Any]:
    names = np.array([name(pair) for pair in pairs], dtype=object)
    return {one: _told(clustered_share(right[names == one], clusters[names == one])) for one in sorted(set(names.tolist()))}


def _told(share: Share | None) -> dict[str, Any] | None:
    return None if share is None else asdict(share)


def _ends(share: Share | None) -> list[float] | None:
    return None if share is None else [share.low, share.high]


def _sure(margins: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.minimum(np.abs(margins), SURE_AT_MOST))))


def _calibration(margins: Floats, right: Floats, clusters: NDArray[np.int64]) -> dict[str, Any]:
    cooled = _sure(margins / cross_fitted_temperatures(margins, clusters))
    return {
        "temperature": fit_temperature(margins),
        "ece_after": ece(cooled, right, bins=BINS),
        "bins_before": [asdict(b) for b in reliability_bins(_sure(margins), right, bins=BINS)],
        "bins_after": [asdict(b) for b in reliability_bins(cooled, right, bins=BINS)],
    }
