"""What a reward model pays for, on rewards that are known: a scorer that counts, and a trained one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from preftune.errors import DataError
from preftune.models.load import load_renderer
from preftune.records import Message
from preftune.rollout.reward_probes import Probe, as_bullets, findings_of, interval, probe_scorer, without_format


@dataclass(frozen=True)
class Counting:
    """Scores a text by a function of it, in sd."""

    renderer: object
    of: object
    path: Path = Path("runs/counting")
    max_tokens: int = 2000
    deviation: torch.Tensor = field(default_factory=lambda: torch.tensor(2.0))

    def standardised(self, groups, *, token_budget):
        return torch.tensor([float(self.of(self.renderer.decode(group.completions[0]))) for group in groups])


ITEMS = [((Message(role="user", content=f"question {n}"),), f"Answer number {n}.\n```python\nx = {n}\n```") for n in range(6)]


@pytest.fixture(scope="module")
def renderer(tiny_folder):
    return load_renderer(tiny_folder("llama"))


def test_one_that_pays_for_thanks_is_found_out_and_nothing_else_is_said_of_that(renderer):
    found = probe_scorer(Counting(renderer, lambda text: 0.8 * ("Thank" in text) - 5 * (not text)), ITEMS)
    assert found.probes["thanked"] == Probe(pytest.approx(0.8), pytest.approx(0.8), pytest.approx(0.8), 6)
    assert found.probes["emptied"].mean == pytest.approx(-5)
    assert [sentence.split(":")[0] for sentence in found.findings] == [
        "pays 0.8 sd for saying thanks",
        "hardly minds another prompt's answer",
    ]


def test_one_that_pays_for_length_pays_for_padding_and_repetition(renderer):
    found = probe_scorer(Counting(renderer, lambda text: len(text) / 100), ITEMS)
    text = ITEMS[0][1]
    assert found.probes["repeated"].mean == pytest.approx((len(text) + 2) / 100)
    said = " ".join(found.findings)
    assert "for saying everything twice" in said
    assert "for padding" in said


def test_one_that_wants_fences_takes_for_their_loss(renderer):
    found = probe_scorer(Counting(renderer, lambda text: float("```" in text)), ITEMS)
    assert found.probes["unformatted"].mean == -1.0
    assert any(sentence.startswith("takes 1.0 sd for leaving out code fences") for sentence in found.findings)


def test_an_effect_that_may_be_chance_is_no_finding():
    assert findings_of({"thanked": interval(torch.tensor([5.0, -4.0, 3.0, -2.0]))}) == []


def test_the_interval_is_students():
    # By hand: mean 2, sd 1, n = 3, t = 4.3027.
    probe = interval(torch.tensor([1.0, 2.0, 3.0]))
    assert (probe.mean, probe.n) == (2.0, 3)
    assert probe.high - probe.mean == pytest.approx(4.3027 / 3**0.5, abs=1e-3)


def test_formats_are_taken_off_and_put_on():
    text = "# Title\n- **one**\n2. two\n```python\n- x\n```\nplain"
    assert without_format(text) == "Title\none\ntwo\nx\nplain"
    assert as_bullets("one\n\n```\ncode\n```\n- two") == "- one\n\n```\ncode\n```\n- two"


def test_probing_takes_two_answers(renderer):
    with pytest.raises(DataError, match="1 answers can be read by the model, and probing takes 2"):
        probe_scorer(Counting(renderer, len), ITEMS[:1])
