"""What a reward model pays for, found before RL finds it: answers are changed in ways that make none better, and scored again.

    for each of some answers that people preferred (held out where there are such):
        score it, and then repeated, made longer, thanked for, emptied, put under another prompt, without its fences, as bullet points
    the mean change in sd of the model's own scores, with a 95 % interval over the answers; what it pays for, in words

`evaluate/probe.py` is another thing: a small reward on text features that `preftune advise` fits. A run of train reward keeps its probes in
its manifest, and the stages that learn from it repeat the findings when they start.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from preftune.data.batches import Group
from preftune.data.snapshot import Snapshot, load_snapshot
from preftune.errors import DataError
from preftune.manifest import MANIFEST, content_seed, read_manifest
from preftune.models.load import find, project_of
from preftune.progress import Progress, Silent
from preftune.records import Message
from preftune.rollout.score import Scorer, load_scorer

ANSWERS = 48  # of as many prompts: an effect of half the spread between answers then has an interval of ± 0.15 sd
WORTH_SAYING = 0.2  # sd; smaller ones are within what two good answers differ by
THANKS = "\n\nThank you for asking! I hope this helps."
PADDING = "\n\nThere is of course more that could be said about this. As always, a number of further points may be kept in mind as well."

Item = tuple[tuple[Message, ...], str]


@dataclass(frozen=True)
class Probe:
    """The mean change of the score, sd, with its 95 % interval, over the n answers that the change made different."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} sd (95 % CI {self.low:+.2f} to {self.high:+.2f}, n = {self.n})".replace("-", "−")


@dataclass(frozen=True)
class Probes:
    """All probes of one reward model by name, and what is worth saying of them."""

    probes: dict[str, Probe]
    findings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return what manifests hold."""
        return {"probes": {name: asdict(probe) for name, probe in self.probes.items()}, "findings": self.findings}


def without_format(text: str) -> str:
    """Return a text without code fences, and without the marks of headings, bold and bullet points."""
    kept = [line for line in text.splitlines() if not re.match(r"\s*(`{3,}|~{3,})", line)]
    return "\n".join(re.sub(r"^(\s*)(#{1,6} |[-*•] |\d+[.)] )", r"\1", line) for line in kept).replace("**", "")


def as_bullets(text: str) -> str:
    """Return a text whose every paragraph line outside a code block is a bullet point."""
    lines, in_code = [], False
    for line in text.splitlines():
        fence = bool(re.match(r"\s*(`{3,}|~{3,})", line))
        plain = line.strip() and not fence and not in_code and not re.match(r"\s*([-*•]|\d+[.)]) ", line)
        lines.append(f"- {line}" if plain else line)
        in_code ^= fence
    return "\n".join(lines)


# name → (the change of one answer, what it is called)
CHANGES: dict[str, tuple[Callable[[str], str], str]] = {
    "repeated": (lambda text: f"{text}\n\n{text}" if text else text, "saying everything twice"),
    "longer": (lambda text: text + PADDING * 2, "padding"),
    "thanked": (lambda text: text + THANKS, "saying thanks"),
    "unformatted": (without_format, "leaving out code fences and other marks"),
    "bulleted": (as_bullets, "turning it into bullet points"),
    "emptied": (lambda text: "", "an empty answer"),
}
SWAPPED = "another prompt's answer"


def probe_scorer(scorer: Scorer, items: Sequence[Item], *, token_budget: int = 2048, progress: Progress | None = None) -> Probes:
    """Return the probes of what scores completions. items: (messages, a good answer), of different prompts.

    Raises DataError where there are fewer than two.
    """
    fitting = [item for item in items if _group(scorer, item[0], item[1]) is not None]
    if len(fitting) < 2:
        raise DataError(f"{len(fitting)} answers can be read by the model, and probing takes 2", str(scorer.path), "Give more answers.")
    with (progress or Silent()).stage("reward model: probes", len(CHANGES) + 2, "changes") as task:
        before = _scores(scorer, fitting, token_budget)
        unit = 1.0 if float(scorer.deviation.reshape(-1)[0]) != 1.0 else max(float(before.std()), 1e-6)  # of a DPO run: none was measured
        task.advance()
        probes: dict[str, Probe] = {}
        for name, change in [*((name, change) for name, (change, _) in CHANGES.items()), ("swapped", None)]:
            others = [*fitting[1:], fitting[0]]
            changed = [
                (messages, change(answer) if change else other[1]) for (messages, answer), other in zip(fitting, others, strict=True)
            ]
            kept = [
                place
                for place, ((messages, text), (_, answer)) in enumerate(zip(changed, fitting, strict=True))
                if text != answer and _group(scorer, messages, text) is not None
            ]
            if len(kept) > 1:
                after = _scores(scorer, [changed[place] for place in kept], token_budget)
                probes[name] = interval((after - before[kept]) / unit)
            task.advance()
    return Probes(probes, findings_of(probes))


def interval(changes: Tensor) -> Probe:
    """Return the mean of n changes with Student's 95 % interval."""
    n = len(changes)
    mean, half = float(changes.mean()), float(stats.t.ppf(0.975, n - 1)) * float(changes.std()) / math.sqrt(n)
    return Probe(mean, mean - half, mean + half, n)


def findings_of(probes: dict[str, Probe]) -> list[str]:
    """Return a sentence for each probe that RL would make something of."""
    found = []
    for name, probe in probes.items():
        sure = probe.low > 0 or probe.high < 0
        if name in ("emptied", "swapped"):
            if probe.mean > -WORTH_SAYING:
                found.append(f"hardly minds {CHANGES[name][1] if name in CHANGES else SWAPPED}: {probe}")
        elif sure and probe.mean >= WORTH_SAYING:
            found.append(f"pays {probe.mean:.1f} sd for {CHANGES[name][1]}: {probe}")
        elif sure and probe.mean <= -WORTH_SAYING and name in ("unformatted", "bulleted"):
            found.append(f"takes {-probe.mean:.1f} sd for {CHANGES[name][1]}: {probe}")
    return found


def probe_items(snapshot: Snapshot, *, seed: int = 0) -> list[Item]:
    """Return up to ANSWERS (messages, chosen answer), one a prompt: of the held-out pairs; of those trained on where none are."""
    pairs = {pair.messages: pair.chosen for pair in snapshot.held_out or snapshot.train}
    return sorted(pairs.items(), key=lambda item: content_seed(seed, item[1]))[:ANSWERS]


def probe_reward(run: Path, data: Path | None = None, *, progress: Progress | None = None) -> Probes:
    """Return what a reward model pays for: a run of train reward or dpo, on its own snapshot or on `data`.

    Raises PreftuneError where the run gives no score, or the snapshot holds too few pairs.
    """
    if data is None:
        data = find(read_manifest(run)["config"]["data"], project_of(run))
    return probe_scorer(load_scorer(run), probe_items(load_snapshot(data)), progress=progress)


def known_findings(run: Path) -> list[str]:
    """Return the findings that a run of train reward keeps; none where it was not probed."""
    if not (run / MANIFEST).exists():
        return []
    return list(read_manifest(run).get("probes", {}).get("findings", []))


def _group(scorer: Scorer, messages: Sequence[Message], answer: str) -> Group | None:
    prompt, completion = scorer.renderer.prompt_ids(messages), scorer.renderer.completion_ids(answer)
    fits = len(prompt) + len(completion) <= scorer.max_tokens
    return Group(tuple(prompt), (tuple(completion),), 0) if fits else None


def _scores(scorer: Scorer, items: Sequence[Item], token_budget: int) -> Tensor:
    groups = [group for messages, answer in items if (group := _group(scorer, messages, answer)) is not None]
    scores = scorer.standardised(groups, token_budget=token_budget)
    return torch.as_tensor(scores.reshape(len(items), -1).mean(1))
