"""Prompt first, SFT, DPO, RLHF, or collect more? Advice from measurements, each sentence with its number.

What is measured: how many pairs and demonstrations there are; how far raters agree, which is the ceiling; what a quick reward probe tells
on unseen prompts, beside length alone, and how that grows; whether good answers are among the model's own samples; whether answers to
imitate differ from the model's own in the way that raters prefer; what the guidelines do as a system prompt; what the planned evaluation
can show. The rules are in `advise_rules.py`. Where the measurements leave the answer open the advice says so, and between which it lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.data.store import Store
from preftune.errors import ModelError
from preftune.evaluate.advise_measures import (
    MAX_PAIRS,
    MIN_PROMPTS,
    Learned,
    Measures,
    Prompting,
    ceiling_of,
    imitation_of,
    learn,
    own_pairs_of,
    power_of,
    probe_of,
    samples_of,
)
from preftune.evaluate.advise_prompting import MAX_NEW_TOKENS, Messages, prompting_of
from preftune.evaluate.advise_rules import OWN, Answer, Outcome, decide, outcomes, percent, points, rate, who_says
from preftune.evaluate.advise_team import Team, read_team
from preftune.evaluate.language_model import LanguageModel
from preftune.evaluate.probe import NUM_FITS
from preftune.evaluate.probe_features import Featurise, hidden_features, text_features
from preftune.progress import Progress, Silent, counted

if TYPE_CHECKING:
    from preftune.evaluate.subject import Subject

TEXT = "the answers' words and form"
STATES = "the model's hidden states, words and form"
AFTER_SFT = "preftune snapshot, preftune train sft, then preftune train dpo model=RUN"
PAIRS_WITH_MODEL = 1000  # a model of 135 M parameters reads their answers in minutes on two CPU cores
REFERENCE_ANSWERS = 200
FAR_FROM_ITS_OWN = (
    "most pairs are not known to be between the model's own answers: where they are far from what it would say, SFT on the chosen answers "
    "comes first (on the built-in sample SFT won 65 points of style, DPO from the base 11.5: docs/decisions/0008)"
)
NEXT: dict[Answer, str] = {
    "prompt first": "write the guidelines into the system prompt, then rank its answers: preftune sample, preftune label",
    "SFT": "preftune snapshot, then preftune train sft",
    "DPO": "preftune snapshot, then preftune train dpo",
    "RLHF": "preftune snapshot, then preftune train reward and preftune train ppo",
    "collect more": "preftune sample, then preftune label",
}


@dataclass(frozen=True)
class Advice:
    """answers: one = the advice; more = it cannot be told between these. reasons: the sentences of the rules that speak for them.

    unsure: those of them whose number leaves it open. notes: what else was measured. missing: what was not, and how it could be.
    """

    answers: tuple[Answer, ...]
    reasons: tuple[str, ...]
    unsure: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    rules: tuple[Outcome, ...]
    measures: Measures

    @property
    def sft_first(self) -> bool:
        """Whether the pairs are not known to be between the model's own answers, so that preference methods start better from SFT."""
        return bool(self.measures.pairs) and (self.measures.own_pairs is None or self.measures.own_pairs.low < OWN)

    @property
    def answer(self) -> Answer | None:
        """The one answer, or None where it cannot be told."""
        return self.answers[0] if len(self.answers) == 1 else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"answer": self.answer, **asdict(self)}

    def lines(self) -> list[str]:
        """Return the advice as lines for a person."""
        if self.answer:
            lines = [f"Advice: {self.answer}.", "Because:"]
        else:
            lines = [f"It cannot be told yet: {' or '.join(self.answers)}.", "What speaks for them:"]
        lines += [f"  {reason}" for reason in self.reasons]
        for head, sentences in (
            ("What leaves it open (four times as many cases halve an interval):", self.unsure),
            ("Also measured:", self.notes),
            ("Not measured:", self.missing),
        ):
            lines += [head, *(f"  {sentence}" for sentence in sentences)] if sentences else []
        likeliest = self.answers[-1]
        return [*lines, f"Next: {AFTER_SFT if self.sft_first and likeliest == 'DPO' else NEXT[likeliest]}"]


def advise(
    store: Store | Path | str,
    *,
    model: Path | LanguageModel | None = None,
    model_name: str | None = None,
    guidelines: str | None = None,
    held_out: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Advice:
    """Measure what a store holds and return the advice.

    model: the model to tune, for the probe's features and for trying the guidelines (a path, or anything that answers). model_name: whose
    samples in the store are the model's own; by default the model's folder name, else those of whom there are most. guidelines: the raters'
    page. held_out: prompts of the planned evaluation; by default a tenth of the groups of near-duplicates.
    """
    progress = progress or Silent()
    with nullcontext(store) if isinstance(store, Store) else Store.open(store) as opened:
        preferred = model.resolve().name if isinstance(model, Path) else None
        team = read_team(opened, model_name=model_name, preferred=preferred)
    subject = _open(model) if isinstance(model, Path) else None
    missing: dict[str, str] = {}
    featurise = _featurise(team, subject, progress)
    with progress.stage("reward probe", total=NUM_FITS, unit="folds") as task:
        learned = learn(team, featurise, seed=seed, max_pairs=PAIRS_WITH_MODEL if subject else MAX_PAIRS, on_done=task.advance)
    probe = probe_of(team, learned, features=STATES if subject else TEXT, seed=seed) if learned else None
    samples = samples_of(team, learned, featurise, seed=seed)
    agreement, ceiling = ceiling_of(team)
    answering = subject or (model if not isinstance(model, Path) else None)
    prompting = _prompting(team, learned, featurise, answering, subject, guidelines, seed, progress, missing)
    groups = len(set(team.group.values()))
    measures = Measures(
        prompts=len(team.prompts),
        judgements=team.judgements,
        raters=team.raters,
        pairs=len(team.pairs),
        demonstrations=len(team.demonstrations),
        imitable=len(team.targets),
        model_name=team.model_name,
        own_pairs=own_pairs_of(team),
        agreement=agreement,
        ceiling=ceiling,
        probe=probe,
        samples=samples,
        imitation=imitation_of(team, learned, featurise, seed=seed),
        prompting=prompting,
        power=power_of(held_out if held_out is not None else round(groups / 10)),
        missing=missing,
    )
    _say_what_is_missing(measures)
    return advice_of(measures)


def advice_of(measures: Measures) -> Advice:
    """Return the advice that follows from what was measured."""
    found = outcomes(measures)
    answers, speaking = decide(found)
    conditions = [condition for outcome in speaking for condition in outcome.conditions]
    reasons = dict.fromkeys(condition.text for condition in conditions if condition.holds is not False)
    unsure = dict.fromkeys(condition.text for condition in conditions if condition.holds is None) if len(answers) > 1 else {}
    notes = [note for note in _notes(measures) if note not in reasons]
    advice = Advice(
        answers,
        tuple(map(_sentence, reasons)),
        tuple(map(_sentence, unsure)),
        tuple(map(_sentence, notes)),
        tuple(map(_sentence, measures.missing.values())),
        tuple(found),
        measures,
    )
    if advice.sft_first and {"DPO", "RLHF"} & set(answers):
        return replace(advice, notes=(_sentence(FAR_FROM_ITS_OWN), *advice.notes))
    return advice


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _open(path: Path) -> Subject:
    from preftune.evaluate.subject import Subject

    return Subject(path)


def _featurise(team: Team, subject: Subject | None, progress: Progress) -> Featurise:
    if subject is None:
        return text_features
    known = [(team.prompts[p.prompt_id].messages, text) for p in team.pairs for text in (p.chosen, p.rejected)]
    step = max(1, len(known) // REFERENCE_ANSWERS)
    return hidden_features(subject, known[::step][:REFERENCE_ANSWERS], progress=progress)


def _prompting(
    team: Team,
    learned: Learned | None,
    featurise: Featurise,
    model: LanguageModel | None,
    subject: Subject | None,
    guidelines: str | None,
    seed: int,
    progress: Progress,
    missing: dict[str, str],
) -> Prompting | None:
    if model is None or not guidelines or not guidelines.strip():
        lacking = " and ".join(what for what, given in (("--model", model), ("--guidelines", guidelines)) if not given)
        missing["prompting"] = f"whether a better prompt would do it: give {lacking or '--guidelines'}, and they are tried as system prompt"
        return None

    def fits(messages: Messages) -> bool:
        return subject is None or len(subject.renderer.prompt_ids(messages)) + MAX_NEW_TOKENS <= subject.max_tokens

    try:
        found = prompting_of(team, learned, featurise, model, guidelines, fits=fits, seed=seed, progress=progress)
    except ModelError as error:  # a template that knows no system prompt
        missing["prompting"] = f"whether a better prompt would do it: {error}"
        return None
    if found is None:
        missing["prompting"] = (
            f"whether a better prompt would do it: it takes {MIN_PROMPTS} prompts that have an answer to imitate and fit with the "
            "guidelines, and a reward probe or conventions that a program knows to judge by"
        )
    return found


def _say_what_is_missing(m: Measures) -> None:
    """Add to `missing` why each measurement is not there, and what would bring it."""
    if m.agreement is None:
        m.missing["agreement"] = "how far raters agree, which is the ceiling of all accuracy: let two raters judge some of the same answers"
    if m.probe is None:
        m.missing["probe"] = "a reward probe: it takes 30 pairs on 30 prompts that are not nearly alike"
    elif m.probe.features == TEXT and m.probe.accuracy.low <= 0.5:
        m.missing["states"] = "whether a model sees in the answers what their words and form do not show: give --model"
    if m.samples is None:
        m.missing["samples"] = (
            f"whether good answers are among the model's own samples: preftune sample gives them; it takes {MIN_PROMPTS} prompts with two "
            "samples each that raters have marked as acceptable or not, or that have an answer to imitate, or a check"
        )
    if m.imitation is None:
        m.missing["imitation"] = (
            f"whether answers to imitate differ from the model's own as raters like: it takes {MIN_PROMPTS} prompts with both, and a probe"
        )
    m.missing["what no measurement tells"] = (
        "what tuning does to knowledge, and whether what is learned holds on other kinds of prompts: preftune evaluate tells both later"
    )


def _notes(m: Measures) -> Iterator[str]:
    said = f"{counted(m.judgements, 'judgements')} by {counted(m.raters, 'raters')}"
    shown = f"there {'is' if m.demonstrations == 1 else 'are'} {counted(m.demonstrations, 'demonstrations')}"
    yield f"{said} on {counted(m.prompts, 'prompts')} give {counted(m.pairs, 'pairs')}; {shown}"
    if m.agreement and m.ceiling:
        yield (
            f"two raters agree in {percent(m.agreement)} of their strict preferences; if they err alike and apart, a perfect model would "
            f"agree with one rater in {percent(m.ceiling)}"
        )
    yield from _probe_notes(m)
    if m.samples:
        s = m.samples
        yield (
            f"of the samples of {m.model_name}, a single one is {who_says(s)} in {percent(s.mean)}, the best of {s.k:.3g} in "
            f"{percent(s.best)}: {points(s.gain)}"
        )
    if m.own_pairs:
        yield f"both answers are the model's own in {percent(m.own_pairs)} of pairs"
    if m.imitation:
        i = m.imitation
        yield (
            f"answers to imitate are told from the model's own in {percent(i.told_apart)}; the same direction tells the chosen one in "
            f"{percent(i.preferred)} of pairs, {points(i.below_probe)} against the probe"
        )
    if m.prompting:
        p = m.prompting
        checks = f"; checks passed {rate(p.checks[0])} without, {rate(p.checks[1])} with" if p.checks else ""
        yield f"the guidelines as system prompt: {percent(p.plain)} without, {percent(p.guided)} with, target {rate(p.target)}{checks}"
    yield _power_note(m)


def _probe_notes(m: Measures) -> Iterator[str]:
    if not m.probe:
        return
    p = m.probe
    yield f"a reward probe on {p.features} tells the preferred answer in {percent(p.accuracy)} of unseen pairs"
    curve = ", ".join(f"{rate(accuracy.value)} with {size:,}" for size, accuracy in p.curve)
    yield f"as the training pairs grow, that is {curve}; with {2 * m.pairs:,} pairs {percent(p.doubled)} are expected, {points(p.gain)}"
    bias = "; a model may learn length alone" if abs(p.longer_wins.value - 0.5) > 0.1 else ""
    yield f"the longer answer wins in {percent(p.longer_wins)} of pairs{bias}; the probe is {points(p.over_length)} over length alone"


def _power_note(m: Measures) -> str:
    needed = ", ".join(f"{rate} takes {count:,}" for rate, count in m.power.needed.items())
    shown = f"find a win rate of {rate(m.power.detectable)} or more" if m.power.detectable else "are too few to find any win rate"
    return f"{m.power.held_out:,} held-out prompts {shown} (two-sided at 5 %, power 80 %); {needed}"
