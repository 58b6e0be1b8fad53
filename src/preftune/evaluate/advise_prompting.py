"""Would a better prompt do it? The same requests with and without the raters' guidelines as system prompt, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from preftune.code.style import CONVENTIONS, judge_style
from preftune.evaluate.advise_measures import MIN_PROMPTS, Learned, Prompting, closed_share, passes
from preftune.evaluate.advise_team import Team
from preftune.evaluate.language_model import LanguageModel
from preftune.evaluate.probe import choose_penalty, fit, folds_of
from preftune.evaluate.probe_features import Featurise
from preftune.evaluate.statistics import bootstrap_mean
from preftune.progress import Progress
from preftune.records import Message

MAX_PROMPTS = 60  # a difference of 25 points between the two shows with them, and a small model answers them in minutes
MAX_NEW_TOKENS = 256
BATCH = 10
NAMED = 3  # conventions that the guidelines must name for a program to judge by them

Messages = tuple[Message, ...]


def with_guidelines(messages: Messages, guidelines: str) -> Messages:
    """Return the conversation with the guidelines as its system prompt, after what its own says."""
    first, *rest = messages
    if first.role == "system":
        return Message(role="system", content=f"{first.content}\n\n{guidelines}"), *rest
    return Message(role="system", content=guidelines), *messages


def named_conventions(guidelines: str) -> list[str]:
    """Return the conventions of `code/style.py` that a page of guidelines names in backticks, which a program can check."""
    return [name for name in CONVENTIONS if f"`{name}`" in guidelines]


def prompting_of(
    team: Team,
    learned: Learned | None,
    featurise: Featurise,
    model: LanguageModel,
    guidelines: str,
    *,
    fits: Callable[[Messages], bool] = lambda messages: True,
    seed: int,
    progress: Progress,
) -> Prompting | None:
    """Return what the guidelines as system prompt change; None where fewer than 20 prompts have an answer to compare with.

    Judged by the conventions that the guidelines name, where a program knows three of them; else by the reward probe, which has not seen
    these prompts. fits: whether a conversation leaves room for an answer.
    """
    named = named_conventions(guidelines)
    by_program = len(named) >= NAMED
    names = [name for name in team.targets if fits(with_guidelines(team.prompts[name].messages, guidelines))]
    names = _drawn(team, names, seed)
    if len(names) < MIN_PROMPTS or not (by_program or learned):
        return None
    prompts = [team.prompts[name].messages for name in names]
    plain = _answers(model, prompts, "answers without the guidelines", seed, progress)
    guided = _answers(model, [with_guidelines(m, guidelines) for m in prompts], "answers with the guidelines", seed, progress)
    if by_program:
        before, after = ([followed(text, named) for text in texts] for texts in (plain, guided))
        target = float(np.mean([followed(team.targets[name], named) for name in names]))
    else:
        assert learned is not None
        before, after = _as_good(team, learned, featurise, names, plain, guided, seed)
        target = 0.5  # an answer just like those to imitate is better than them half the time
    checked = [place for place, name in enumerate(names) if team.prompts[name].check]
    checks = None
    if checked:
        rates = [float(np.mean(passes([(texts[p], team.prompts[names[p]].check) for p in checked]))) for texts in (plain, guided)]
        checks = rates[0], rates[1]
    return Prompting(
        "conventions" if by_program else "probe",
        bootstrap_mean(before, None, seed),
        bootstrap_mean(after, None, seed),
        target,
        closed_share(before, after, target, seed=seed),
        checks,
    )


def followed(answer: str, named: Sequence[str]) -> float:
    """Return the share of these conventions, of those that apply, that an answer follows: 1 where none applies, 0 without code."""
    report = judge_style(answer)
    if report.code is None:
        return 0.0
    verdicts = [report.verdicts[name] for name in named if report.verdicts[name] is not None]
    return sum(map(bool, verdicts)) / len(verdicts) if verdicts else 1.0


def _drawn(team: Team, names: list[str], seed: int) -> list[str]:
    """Return at most 60 prompts, drawn at random, one of each group of near-duplicates."""
    first = {team.group[name]: name for name in reversed(names)}
    ordered = list(first.values())[::-1]
    order = np.random.default_rng(seed).permutation(len(ordered))[:MAX_PROMPTS]
    return [ordered[place] for place in sorted(order)]


def _answers(model: LanguageModel, prompts: list[Messages], name: str, seed: int, progress: Progress) -> list[str]:
    found: list[str] = []
    with progress.stage(name, total=len(prompts), unit="answers") as task:
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            found += [g.text for g in model.generate(part, max_new_tokens=MAX_NEW_TOKENS, temperature=0.0, seed=seed)]
            task.advance(len(part))
    return found


def _as_good(
    team: Team, learned: Learned, featurise: Featurise, names: list[str], plain: list[str], guided: list[str], seed: int
) -> tuple[list[float], list[float]]:
    """Return for each prompt whether the plain, and the guided, answer is at least as good as the one to imitate, by five probes.

    The probe of a prompt has not seen its group.
    """
    messages = [team.prompts[name].messages for name in names]
    target = featurise(list(zip(messages, [team.targets[name] for name in names], strict=True)))
    groups = np.array([team.group[name] for name in names], dtype=np.intp)
    folds = folds_of(np.concatenate([learned.pairs.groups, groups]), 5, seed)
    hits = []
    for texts in (plain, guided):
        margins = np.zeros(len(names))
        better = featurise(list(zip(messages, texts, strict=True))) - target
        for fold in range(5):
            part, test = learned.pairs.take(folds[: len(learned.pairs)] != fold), folds[len(learned.pairs) :] == fold
            margins[test] = better[test] @ fit(part.differences, part.weights, choose_penalty(part, seed))
        hits.append([float(margin >= 0) for margin in margins])
    return hits[0], hits[1]
