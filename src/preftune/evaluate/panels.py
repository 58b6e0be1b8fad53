"""The curves of a report: which metrics of which run are drawn, and one sentence each on how to read them.

Two reports beside each other draw the same panels, with the lines of both runs in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from preftune.evaluate import plots
from preftune.evaluate.story import RL, RunView, Story, number
from preftune.evaluate.wording import plain


@dataclass(frozen=True)
class Panel:
    """One drawing, its heading and how to read it."""

    title: str
    drawing: Markup
    reading: str


@dataclass(frozen=True)
class StageCurves:
    """The panels of one run; source: the anchor's file of its metrics."""

    name: str
    label: str
    panels: tuple[Panel, ...]
    source: str


@dataclass(frozen=True)
class Plan:
    """A panel to draw where the run has logged at least one of its metrics (name → label)."""

    title: str
    metrics: dict[str, str]
    unit: str
    reading: str
    percent: bool = False
    guide: tuple[float, str] | None = None


PART = "reward/part/"
_LOSS_PAIRS = "It starts near 0.69 (log 2: a coin toss) and falls as chosen and rejected are told apart."
_ACCURACY = Plan(
    "Pairs told apart",
    {"accuracy/train": "training pairs", "accuracy/held_out": "held-out pairs"},
    "share of pairs",
    "Share of the step's pairs in which the chosen answer comes out ahead; near 100 % early on may be memory: the held-out figure counts.",
    percent=True,
    guide=(0.5, "coin toss"),
)
_LENGTH = Plan(
    "Length", {"length/completion": "tokens an answer"}, "tokens", "Should stay about level: growth without better answers is padding."
)
_DPO = (
    Plan("Loss", {"loss/train": "training pairs", "loss/held_out": "held-out pairs"}, "nats", _LOSS_PAIRS, guide=(0.6931, "coin toss")),
    _ACCURACY,
    Plan(
        "Chosen and rejected against the start",
        {"logprobs/chosen": "chosen", "logprobs/rejected": "rejected"},
        "log-ratio, nats an answer",
        "The gap between the two is what DPO learns. Healthy: chosen stays near or above 0 while rejected falls; ill: both fall.",
        guide=(0.0, "as at the start"),
    ),
)
_RL = (
    Plan(
        "Reward",
        {"reward/score": "score", "reward/total": "score − KL penalty"},
        "score",
        "What the policy climbs. Read it with the style and the checks: a score that rises alone is a gamed reward model.",
    ),
    Plan(
        "KL from the start",
        {"kl/reference": "KL"},
        "nats an answer",
        "The price of the reward: how far the answers have moved from the model that it started from.",
    ),
    _LENGTH,
    Plan(
        "Answers that end by themselves",
        {"length/finished": "share that ends"},
        "share of answers",
        "Should not fall: an answer that never ends is cut at the limit and cannot be judged whole.",
        percent=True,
    ),
    Plan(
        "Policy and value loss",
        {"loss/policy": "policy", "loss/value": "value"},
        "loss",
        "The value loss should fall as the critic learns; the policy loss hovers about 0 and says little by itself.",
    ),
    Plan(
        "How hard each step pulls",
        {"policy/clip_fraction": "share clipped"},
        "share of tokens",
        "Share of tokens whose change was clipped; above some 30 % the steps are too large.",
        percent=True,
    ),
    Plan(
        "Collapse",
        {"text/repetition": "repeated", "text/distinct": "distinct"},
        "share",
        "Repeated: runs of words that the same answer held before. Distinct: answers unlike all others of their step. "
        "Little repeated and nearly all distinct is healthy; one answer to everything, or the same words again, is collapse.",
        percent=True,
    ),
    Plan(
        "What the critic foresees",
        {"value/explained_variance": "explained variance"},
        "share of variance",
        "1: all of it; below 0 it is worse than the mean, and its advantages are noise.",
        guide=(0.0, "the mean"),
    ),
    Plan(
        "Entropy",
        {"entropy": "entropy"},
        "nats a token",
        "How open the next token still is. It falls slowly; near 0 nothing new is tried.",
    ),
    Plan(
        "Sampling and learning agree",
        {"policy/ratio": "mean ratio"},
        "ratio",
        "1 on the first update of a step, and near 1 after it. Far from 1: steps too large, or another mask or temperature.",
        guide=(1.0, "the same policy"),
    ),
    Plan(
        "Samples of the policy that learns",
        {"mismatch/ess": "effective share", "mismatch/cut": "tokens with a cut weight"},
        "share",
        "Samples drawn elsewhere, with older weights or by another engine. An effective share near 1 is healthy; below a half, or "
        "with more than 5 % cut, the weights no longer make up for the difference.",
        percent=True,
    ),
    Plan(
        "Weight of the KL",
        {"kl/coef": "kl_coef"},
        "reward a nat",
        "Moves where kl_target is set. Ever higher: the reward pulls harder than the KL can hold.",
    ),
    Plan(
        "Doubt of the reward models",
        {"reward/uncertainty": "spread over the members"},
        "sd of their scores",
        "Rising: the answers have gone where the members were never taught, and their mean is a guess.",
    ),
    Plan(
        "Nothing to learn from",
        {"groups/equal": "groups all alike", "reward/failed": "not judged", "reward/empty": "empty"},
        "share",
        "Groups whose samples all scored the same, samples that no reward could judge, and empty answers teach nothing.",
        percent=True,
    ),
)
PLANS: dict[str, tuple[Plan, ...]] = {
    "sft": (
        Plan(
            "Loss",
            {"loss/train": "loss"},
            "nats a token",
            "Falls fast, then flattens; a second steep fall at a new pass means that examples are memorised.",
        ),
        _LENGTH,
    ),
    "reward": (
        Plan("Loss", {"loss/train": "training pairs", "loss/held_out": "held-out pairs"}, "nats", _LOSS_PAIRS, guide=(0.6931, "coin toss")),
        _ACCURACY,
        Plan(
            "Margin",
            {"margin/train": "chosen − rejected"},
            "score",
            "How far apart the two scores are; ever wider margins at level accuracy mean over-confidence.",
        ),
    ),
    "dpo": _DPO,
    **dict.fromkeys(RL, _RL),
}


def stage_curves(story: Story) -> list[StageCurves]:
    """Return the panels of every run that logged anything, in the order of the loop."""
    drawn = []
    for name in story.ordered_runs:
        run, label = story.runs[name], story.run_labels[name]
        plans = plans_of(story.kind(name), [run])
        found = [drawn_panel(f"curve-{name}-{place}", {label: run}, plan) for place, plan in enumerate(plans)]
        panels = tuple(panel for panel in found if panel)
        if panels:
            drawn.append(StageCurves(name, label, panels, f"run-{name}"))
    return drawn


def plans_of(kind: str, runs: Sequence[RunView]) -> list[Plan]:
    """Return the panels of a stage, with one of the rewards' parts where the runs have logged several."""
    plans = list(PLANS.get(kind, ()))
    parts = sorted({key for run in runs for row in run.metrics for key in row if key.startswith(PART)})
    if len(parts) > 1:
        reading = "Each reward before its weight. One that rises alone is being gamed."
        plans.insert(1, Plan("Parts of the reward", {key: key.removeprefix(PART) for key in parts}, "score", reading))
    return plans


def drawn_panel(name: str, runs: Mapping[str, RunView], plan: Plan) -> Panel | None:
    """Return a panel with the lines of one run, or of several by their labels; None where none has logged its metrics."""
    lines = [
        plots.Line(label if len(runs) == 1 else f"{who}: {label}", *series)
        for who, run in runs.items()
        for key, label in plan.metrics.items()
        if (series := run.series(key))[1]
    ]
    if not lines:
        return None
    guide = plan.guide
    if "kl/reference" in plan.metrics:
        targets = {number(run.manifest.get("config", {}).get("kl_target")) for run in runs.values()}
        target = targets.pop() if len(targets) == 1 else None
        guide = guide if target is None else (target, "target")
    told = " and ".join(runs)
    drawing = plots.curves(name, f"{told}: {plan.title}", _told(lines, plan), lines, unit=plan.unit, percent=plan.percent, guide=guide)
    return Panel(plan.title, drawing, plan.reading)


def _told(lines: Sequence[plots.Line], plan: Plan) -> str:
    """Say what a drawing shows to one who does not see it: where each line starts and ends."""

    def tell(line: plots.Line, place: int) -> str:
        value = line.values[place]
        shown = plain(value, "share") if plan.percent else f"{value:.3g}".replace("-", "−")
        return f"{shown} at step {line.steps[place]:.0f}"

    return " ".join(f"{line.label}: from {tell(line, 0)} to {tell(line, -1)}." for line in lines)
