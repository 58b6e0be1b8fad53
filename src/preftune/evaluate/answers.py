"""Answers beside each other: which requests are shown first, by rule, and what is said of each answer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from markupsafe import Markup

from preftune.code.style import CONVENTIONS
from preftune.evaluate.diffs import marked, word_diff
from preftune.evaluate.story import RL, Story, number
from preftune.evaluate.wording import plain

SHOWN = 12
OF_EACH = 3  # biggest gains, biggest losses
TICKS = {True: ("✓", "yes", "followed"), False: ("✗", "no", "broken")}


@dataclass(frozen=True)
class Tick:
    """One convention on one answer: its sign, the class of its colour, its name, and the sign in words."""

    sign: str
    style: str
    name: str
    words: str


@dataclass(frozen=True)
class Side:
    """One answer, ready to show. untouched: the conventions that do not apply to it."""

    label: str
    text: Markup
    facts: str
    ticks: tuple[Tick, ...]
    untouched: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """One request with its answers. why: the rule by which it is shown, or "" in the folded rest; others: the other methods' answers."""

    id: str
    kind: str
    why: str
    prompt: str
    note: str
    before: Side
    after: Side
    others: tuple[Side, ...]


def cards(story: Story) -> tuple[list[Card], list[Card]]:
    """Return the requests chosen by rule, and the rest, each with the base model's and the headline model's answer."""
    if story.headline is None or "before" not in story.evaluations:
        return [], []
    before, after = (_by_id(story.evaluations[name]) for name in ("before", story.headline))
    both = [name for name in before if name in after]
    picked = choose([(_with_newness(story, before[name]), after[name]) for name in both])
    shown = [_card(story, name, why) for name, why in picked.items()]
    return shown, [_card(story, name, "") for name in both if name not in picked]


def compared_cards(story: Story) -> list[Card]:
    """Return prompts of a comparison with the answers of the two it is about first: wins, losses and ties in turn, by id."""
    by_verdict: dict[str, list[Card]] = {"A is preferred": [], "B is preferred": [], "a tie": []}
    for row in sorted(story.compared, key=lambda row: str(row.get("id"))):
        verdict: dict[str, Any] = next(iter(row.get("verdicts") or []), {})
        said, texts = number(verdict.get("verdict")), row.get("answers") or {}
        a, b = str(verdict.get("a")), str(verdict.get("b"))
        if said is None or a not in texts or b not in texts:
            continue
        why = "A is preferred" if said > 0.5 else "B is preferred" if said < 0.5 else "a tie"
        diff = word_diff(str(texts[a]), str(texts[b]))
        first = Side(f"A: {Path(a).name}", diff.before, "", (), ())
        second = Side(f"B: {Path(b).name}", diff.after, "", (), ())
        by_verdict[why].append(Card(str(row.get("id")), "", why, str(row.get("prompt", "")), diff.note, first, second, ()))
    return [card for turn in zip_longest(*by_verdict.values()) for card in turn if card][:SHOWN]


def _by_id(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {str(answer.get("id")): answer for answer in evaluation.get("answers", [])}


def _with_newness(story: Story, answer: dict[str, Any]) -> dict[str, Any]:
    if "new_kind" in answer or story.trained_kinds is None:
        return answer
    return answer | {"new_kind": str(answer.get("kind")) not in story.trained_kinds}


def choose(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, str]:
    """Return id → why, for at most 12 requests: biggest gains, biggest losses, the median, one of each new kind, then the first ones.

    The rule looks at adherence alone (at the reward model's score where style was not measured), ties by id, so nobody picks the pretty
    ones.
    """
    by = "adherence" if any(number(one.get("adherence")) is not None for pair in pairs for one in pair) else "reward"
    changes = {str(b.get("id")): (number(a.get(by)) or 0.0) - (number(b.get(by)) or 0.0) for b, a in pairs}
    ranked = sorted(changes, key=lambda name: (-changes[name], name))
    picked: dict[str, str] = {}
    for name in ranked[:OF_EACH]:
        picked.setdefault(name, "among the biggest gains" if changes[name] > 0 else "nothing gained more")
    for name in sorted(changes, key=lambda name: (changes[name], name))[:OF_EACH]:
        picked.setdefault(name, "among the biggest losses" if changes[name] < 0 else "nothing lost more")
    if ranked:
        picked.setdefault(ranked[len(ranked) // 2], "the median")
    kinds: dict[str, str] = {}
    for answer, _ in pairs:
        if answer.get("new_kind"):
            kinds.setdefault(str(answer.get("kind")), str(answer.get("id")))
    for kind, name in sorted(kinds.items()):
        if len(picked) < SHOWN:
            picked.setdefault(name, f"of a kind that was not trained on: {kind}")
    for name in sorted(changes):
        if len(picked) < SHOWN:
            picked.setdefault(name, "the next by id")
    return picked


def _card(story: Story, name: str, why: str) -> Card:
    headline = story.headline or ""
    answers = {method: _by_id(evaluation).get(name) for method, evaluation in story.evaluations.items()}
    before, after = answers["before"] or {}, answers[headline] or {}
    diff = word_diff(text_of(before), text_of(after))
    others = tuple(
        side(story.labels[method], answer, marked(text_of(answer), [], "ins"))
        for method in story.methods
        if why and method != headline and (answer := answers.get(method))
    )
    return Card(
        id=name,
        kind=str(before.get("kind", "")),
        why=why,
        prompt=str(before.get("prompt", "")),
        note=diff.note,
        before=side(f"Before: {story.labels['before'].lower()}", before, diff.before),
        after=side(f"After: {story.labels[headline]}", after, diff.after),
        others=others,
    )


def text_of(answer: dict[str, Any]) -> str:
    """Return the text of an answer."""
    return str(answer.get("answer", ""))


def side(label: str, answer: dict[str, Any], text: Markup) -> Side:
    """Return one answer of an evaluation, ready to show."""
    verdicts = answer.get("verdicts") or {}
    names = [*(name for name in CONVENTIONS if name in verdicts), *(name for name in verdicts if name not in CONVENTIONS)]
    ticks = tuple(Tick(*TICKS[verdicts[name]][:2], name, TICKS[verdicts[name]][2]) for name in names if verdicts[name] in (True, False))
    untouched = tuple(name for name in names if verdicts[name] not in (True, False))
    return Side(label, text or Markup("<em>empty</em>"), _facts(answer), ticks, untouched)


def _facts(answer: dict[str, Any]) -> str:
    parts = ["no Python code found"] if answer.get("parses") is False else []
    if answer.get("passes") is not None:
        parts.append("check passed ✓" if answer["passes"] else "check failed ✗")
    elif answer.get("parses", True) is not None:  # where no code is asked for, a check is not missed
        parts.append("no check")
    if number(answer.get("adherence")) is not None:
        parts.append(f"adherence {plain(number(answer['adherence']), 'share')}")
    if number(answer.get("tokens")) is not None:
        parts.append(f"{number(answer['tokens']):.0f} tokens" + ("" if answer.get("finished", True) else ", cut at the limit"))
    if number(answer.get("reward")) is not None:
        parts.append(f"score {plain(number(answer['reward']), 'score')}")
    return " · ".join(parts)


def training_samples(story: Story) -> dict[str, list[Side]]:
    """Return what each RL run wrote at its first, middle and last step, of each step the completion that scored best; by its label."""
    found = {story.run_labels[name]: _of_steps(story.runs[name].samples) for name in story.ordered_runs if story.kind(name) in RL}
    return {label: sides for label, sides in found.items() if sides}


def _of_steps(rows: list[dict[str, Any]]) -> list[Side]:
    best: dict[float, dict[str, Any]] = {}
    for row in rows:
        step, score = number(row.get("step")), number(row.get("score"))
        if step is not None and score is not None and (step not in best or score > float(best[step]["score"])):
            best[step] = row
    steps = sorted(best)
    shown = sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []
    return [_sampled(best[step]) for step in shown]


def _sampled(row: dict[str, Any]) -> Side:
    facts = f"score {plain(number(row['score']), 'score')} · KL {plain(number(row.get('kl')), 'nats')}"
    ending = "" if row.get("finished", True) else " · cut at the limit"
    text = Markup("{}<b>{}</b>").format(str(row.get("prompt", "")), marked(str(row.get("completion", "")), [], "ins"))
    return Side(f"Step {row['step']}", text, facts + ending, (), ())
