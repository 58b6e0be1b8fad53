"""The curves of a report: which metrics of which run are drawn, and one sentence each on how to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from preftune.evaluate import plots
from preftune.evaluate.story import RUN_LABELS, RUN_ORDER, RunView, Story, number
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


_LOSS_PAIRS = "It starts near 0.69 (log 2: a coin toss) and falls as chosen and rejected are told apart."
_ACCURACY = Plan(
    "Pairs told apart",
    {"accuracy/train": "training pairs"},
    "share of pairs",
    "Share of the step's pairs in which the chosen answer comes out ahead; near 100 % early on may be memory: the held-out figure counts.",
    percent=True,
    guide=(0.5, "coin toss"),
)
_LENGTH = Plan(
    "Length", {"length/completion": "tokens an answer"}, "tokens", "Should stay about level: growth without better answers is padding."
)
_DPO = (
    Plan("Loss", {"loss/train": "loss"}, "nats", _LOSS_PAIRS, guide=(0.6931, "coin toss")),
    _ACCURACY,
    Plan(
        "Chosen and rejected against the start",
        {"logprobs/chosen": "chosen", "logprobs/rejected": "rejected"},
        "log-ratio, nats an answer",
        "The gap between the two is what DPO learns. Healthy: chosen stays near or above 0 while rejected falls; ill: both fall.",
        guide=(0.0, "as at the start"),
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
        Plan("Loss", {"loss/train": "loss"}, "nats", _LOSS_PAIRS, guide=(0.6931, "coin toss")),
        _ACCURACY,
        Plan(
            "Margin",
            {"margin/train": "chosen − rejected"},
            "score",
            "How far apart the two scores are; ever wider margins at level accuracy mean over-confidence.",
        ),
    ),
    "dpo": _DPO,
    "dpo_base": _DPO,
    "ppo": (
        Plan(
            "Reward",
            {"reward/score": "score", "reward/total": "score − KL penalty"},
            "score",
            "What PPO climbs. Read it with the style and the checks: a score that rises alone is a gamed reward model.",
        ),
        Plan(
            "KL from the start",
            {"kl/reference": "KL"},
            "nats an answer",
            "The price of the reward: how far the answers have moved from the model that PPO started from.",
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
            {"text/repetition": "repeated within an answer", "text/distinct": "distinct answers"},
            "share",
            "Healthy: little repeated, nearly all answers distinct. One answer to everything, or the same words again, is collapse.",
            percent=True,
        ),
        Plan(
            "What the critic foresees",
            {"value/explained_variance": "explained variance"},
            "share of the returns' variance",
            "1: all of it; below 0 it is worse than the mean, and its advantages are noise.",
            guide=(0.0, "no better than the mean"),
        ),
    ),
}


def stage_curves(story: Story) -> list[StageCurves]:
    """Return the panels of every run that logged anything, in the order of the loop."""
    drawn = []
    for name in RUN_ORDER:
        run = story.runs.get(name)
        if run is None:
            continue
        panels = [panel for i, plan in enumerate(PLANS[name]) if (panel := _panel(f"curve-{name}-{i}", RUN_LABELS[name], run, plan))]
        if panels:
            drawn.append(StageCurves(name, RUN_LABELS[name], tuple(panels), f"run-{name}"))
    return drawn


def _panel(name: str, label: str, run: RunView, plan: Plan) -> Panel | None:
    series = {key: run.series(key) for key in plan.metrics}
    lines = [plots.Line(plan.metrics[key], steps, values) for key, (steps, values) in series.items() if values]
    if not lines:
        return None
    guide = plan.guide
    target = number(run.manifest.get("config", {}).get("kl_target")) if "kl/reference" in plan.metrics else None
    if target is not None:
        guide = (target, "target")
    drawing = plots.curves(name, f"{label}: {plan.title}", _told(lines, plan), lines, unit=plan.unit, percent=plan.percent, guide=guide)
    return Panel(plan.title, drawing, plan.reading)


def _told(lines: Sequence[plots.Line], plan: Plan) -> str:
    """Say what a drawing shows to one who does not see it: where each line starts and ends."""

    def tell(line: plots.Line, place: int) -> str:
        value = line.values[place]
        shown = plain(value, "share") if plan.percent else f"{value:.3g}".replace("-", "−")
        return f"{shown} at step {line.steps[place]:.0f}"

    return " ".join(f"{line.label}: from {tell(line, 0)} to {tell(line, -1)}." for line in lines)
