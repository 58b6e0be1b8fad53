"""Fixtures of the data tests: judgements written short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from preftune.records import Judgement


@pytest.fixture(scope="session")
def said() -> Callable[..., Judgement]:
    """Return a function: `said("p", "a > b = c", "ann", shown="ba")` is the judgement that this reads like.

    Candidates are named prompt + letter, so that those of two prompts differ.
    """

    def judgement(prompt: str, order: str, rater: str = "ann", shown: str = "", **fields: Any) -> Judgement:
        tiers = tuple(tuple(prompt + name.strip() for name in tier.split("=")) for tier in order.split(">"))
        return Judgement(prompt_id=prompt, ranking=tiers, rater=rater, presentation=tuple(prompt + name for name in shown), **fields)

    return judgement
