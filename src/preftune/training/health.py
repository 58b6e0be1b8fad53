"""What goes wrong in reinforcement learning, looked for in what a run has logged, and said in plain words.

A run's rows (`metrics.jsonl`) are all that is looked at, so a resumed run says what the undisturbed one does, and PPO, RLOO and GRPO
share this page. Each trouble compares the mean of the last rows with that of the first, or with a bound; a trouble whose metric a
stage does not log is not looked for. The bounds are those of `docs/ppo.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Trouble = Literal["length", "kl", "entropy", "unfinished", "clipped", "critic", "repetition", "alike", "mismatch"]
Row = Mapping[str, float]

WINDOW = 3  # rows whose mean is taken, at the start and at the end
LONGER, SHORTER = 1.5, 0.5  # times the length of the start
RISE = 0.2  # sd of the score: less is a round's luck
FAR = 20.0  # nats an answer: so far out a reward model judges what it never saw
FAR_FROM_TARGET = 3.0  # times kl_target
NEGATIVE = -1.0  # nats an answer: noise does not reach it, a wrong mask or temperature does
ENTROPY_LEFT = 1 / 3  # of the start's
FINISHED = 0.8  # share of the answers
CLIPPED = 0.3  # share of the tokens
BLIND_ROWS = 10  # in which the critic foresees less than the mean does
REPEATED, REPEATED_MORE = 0.3, 0.15  # share of an answer's runs of four tokens; and by how much more than at the start
DISTINCT_LEFT, SPREAD_LEFT = 0.5, 0.1  # of the start's
EFFECTIVE, CUT, APART = 0.5, 0.05, 0.03  # share of the samples that count, share of the tokens, nats a token
GRAM = 4  # tokens


@dataclass(frozen=True)
class Finding:
    """A trouble that was found: its name, as in `stop_on`, and "Heading: what was seen, and what helps"."""

    name: Trouble
    text: str


def repetition(ids: Sequence[int]) -> float:
    """Return which share of the runs of four tokens the same answer holds before, 0 to 1; 0 for a short answer."""
    grams = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def text_metrics(completions: Sequence[Sequence[int]]) -> dict[str, float]:
    """Return what the samples of one step say of themselves. completions: token ids of each."""
    return {
        "text/repetition": sum(map(repetition, completions)) / len(completions),
        "text/distinct": len({tuple(ids) for ids in completions}) / len(completions),
    }


def findings(rows: Sequence[Row], *, kl_target: float | None = None) -> list[Finding]:
    """Return the troubles that the rows of a run show now, in a fixed order; none before WINDOW rows are there.

    rows: one a step, from the first. kl_target: nats an answer, where the run is steered to one.
    """
    if len(rows) < WINDOW:
        return []
    early, late = (_means(part) for part in (rows[:WINDOW], rows[-WINDOW:]))
    looked: dict[Trouble, Callable[[], str | None]] = {
        "length": lambda: _length(early, late),
        "kl": lambda: _kl(late, kl_target),
        "entropy": lambda: _entropy(early, late),
        "unfinished": lambda: _unfinished(late),
        "clipped": lambda: _clipped(late),
        "critic": lambda: _critic(rows),
        "repetition": lambda: _repetition(early, late),
        "alike": lambda: _alike(early, late),
        "mismatch": lambda: _mismatch(late),
    }
    return [Finding(name, text) for name, look in looked.items() if (text := look()) is not None]


def _means(rows: Sequence[Row]) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if all(key in row for row in rows)}


def _pair(early: Row, late: Row, key: str) -> tuple[float, float] | None:
    return (early[key], late[key]) if key in early and key in late else None


def _length(early: Row, late: Row) -> str | None:
    lengths, scores = (_pair(early, late, key) for key in ("length/completion", "reward/score"))
    if lengths is None or scores is None or lengths[0] <= 0:
        return None
    times = lengths[1] / lengths[0]
    if scores[1] - scores[0] < RISE or SHORTER < times < LONGER:
        return None
    told = f"the score rose from {scores[0]:.2g} to {scores[1]:.2g} sd, the answers went from {lengths[0]:.0f} to {lengths[1]:.0f} tokens"
    heading = "Reward rises while answers grow" if times > 1 else "Reward rises while answers shrink"
    return f"{heading}: {told}. It is learning length. Read the samples; a higher kl_coef or a reward that is blind to length helps."


def _kl(late: Row, kl_target: float | None) -> str | None:
    kl = late.get("kl/reference")
    if kl is None:
        return None
    if kl < NEGATIVE:
        return (
            f"Negative KL: {kl:.1f} nats an answer, which no true KL is. The sampler is not the policy that is trained: another "
            "temperature, mask or template. Report this with the model's name."
        )
    limit = FAR if kl_target is None else FAR_FROM_TARGET * kl_target
    if kl <= limit:
        return None
    return (
        f"Far from the start: KL is {kl:.0f} nats an answer, over {limit:.0f}. Out there the reward model judges answers unlike those "
        "it learned from. A higher kl_coef, a lower lr or fewer steps keep it nearer."
    )


def _entropy(early: Row, late: Row) -> str | None:
    pair = _pair(early, late, "entropy")
    if pair is None or pair[0] <= 0 or pair[1] >= ENTROPY_LEFT * pair[0]:
        return None
    return f"Entropy collapses: from {pair[0]:.2g} to {pair[1]:.2g} nats a token; it hardly tries anything new. Lower lr or raise kl_coef."


def _unfinished(late: Row) -> str | None:
    share = late.get("length/finished")
    if share is None or share >= FINISHED:
        return None
    return (
        f"Answers do not end: only {share:.0%} end by themselves, the others are cut at max_new_tokens and judged by no_eos_score. "
        "Raise max_new_tokens, or start from a model that has learned to stop."
    )


def _clipped(late: Row) -> str | None:
    share = late.get("policy/clip_fraction")
    if share is None or share <= CLIPPED:
        return None
    return f"Steps are too large: {share:.0%} of the tokens are clipped. Lower lr, or take fewer epochs."


def _critic(rows: Sequence[Row]) -> str | None:
    seen = [row["value/explained_variance"] for row in rows[-BLIND_ROWS:] if "value/explained_variance" in row]
    if len(seen) < BLIND_ROWS or max(seen) >= 0:
        return None
    return (
        f"The critic is blind: for {BLIND_ROWS} steps it has foreseen less than the mean return does, so its advantages are noise. "
        "Give it critic.warmup_steps or a higher value_lr, or set gae_lambda=1."
    )


def _repetition(early: Row, late: Row) -> str | None:
    pair = _pair(early, late, "text/repetition")
    if pair is None or pair[1] <= REPEATED or pair[1] - pair[0] <= REPEATED_MORE:
        return None
    return f"Answers repeat themselves: {pair[1]:.0%} of their runs of four tokens came before in the same answer ({pair[0]:.0%} at first)."


def _alike(early: Row, late: Row) -> str | None:
    distinct, spread = (_pair(early, late, key) for key in ("text/distinct", "reward/score_sd"))
    if distinct is not None and distinct[1] < DISTINCT_LEFT * distinct[0]:
        return f"Samples become alike: {distinct[1]:.0%} of a step's answers differ from each other, {distinct[0]:.0%} did at first."
    if spread is not None and spread[0] > 0 and spread[1] < SPREAD_LEFT * spread[0]:
        return f"Scores become alike: their spread within a step is {spread[1]:.2g} sd, and was {spread[0]:.2g}: little to learn from."
    return None


def _mismatch(late: Row) -> str | None:
    told = [late.get(f"mismatch/{name}") for name in ("ess", "cut", "kl")]
    if None in told:
        return None
    share, cut, kl = (float(number) for number in told if number is not None)
    if share >= EFFECTIVE and cut <= CUT and kl <= APART:
        return None
    seen = f"they count as {share:.0%} of their number, {cut:.0%} of their tokens have a weight that is cut, KL {kl:.2g} nats a token"
    if late.get("rollout/staleness", 0.0) > 0:
        return f"Samples are too old: {seen}. Lower lr or rollout.max_staleness, or take fewer epochs."
    return (
        f"The sampler is another policy: {seen}, though its weights are this step's. Its dtype or kernels compute other log-probs than the "
        "trainer's: serve the model unquantised, in the trainer's dtype."
    )
