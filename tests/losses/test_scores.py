"""The unit, the bounds and the missing end of scores: by hand, and against plain statistics."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import ShapeError
from preftune.losses.scores import Moments, add_missing_end, replace_missing_end, with_values

SCORES, FINISHED = torch.tensor([1.0, 0.5, -3.0]), torch.tensor([True, False, False])
numbers = st.lists(st.floats(-100, 100), max_size=8)


def test_a_missing_end_replaces_the_score_or_is_added_to_it():
    assert replace_missing_end(SCORES, FINISHED, no_eos_score=-1.0).tolist() == [1, -1, -1]
    assert add_missing_end(SCORES, FINISHED, no_eos_score=-1.0).tolist() == [1, -0.5, -4]
    for function in (replace_missing_end, add_missing_end):
        with pytest.raises(ShapeError, match=r"scores is \[3\] but finished is \[2\]"):
            function(SCORES, FINISHED[:2], no_eos_score=-1.0)


@given(st.lists(numbers, max_size=5))
def test_running_moments_are_those_of_all_values_at_once(batches):
    seen = Moments()
    for batch in batches:
        seen = with_values(seen, torch.tensor(batch, dtype=torch.float64))
    flat = [value for batch in batches for value in batch]
    assert seen.count == len(flat)
    if flat:
        assert seen.mean == pytest.approx(statistics.fmean(flat), abs=1e-9)
    assert seen.deviation == pytest.approx(statistics.stdev(flat) if len(flat) > 1 else 0.0, abs=1e-6)
