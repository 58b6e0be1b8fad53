"""What a team has, read from its store: pairs, demonstrations, the model's own samples, marks, and how far its raters agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import fmean

from preftune.data.agreement import Pairwise, pairwise_agreement
from preftune.data.comparisons import comparisons
from preftune.data.duplicates import near_duplicate_groups
from preftune.data.store import Store
from preftune.errors import ConfigError
from preftune.records import GOLD, Judgement, Prompt, majority_pairs, standing


@dataclass(frozen=True)
class TeamPair:
    """A preference by majority. own: whether chosen and rejected are the model's own samples."""

    prompt_id: str
    chosen: str
    rejected: str
    weight: float
    own: tuple[bool, bool]


@dataclass(frozen=True)
class Sample:
    """One of the model's own answers. mark: the share of raters who find it acceptable; None where nobody was asked."""

    text: str
    mark: float | None


@dataclass(frozen=True)
class Team:
    """All that the advice is measured from. Mappings are by prompt id.

    group: the number of the prompt's group of near-duplicates. targets: an answer to imitate (a demonstration or a rewrite, else a chosen
    answer that is not the model's own). own: the samples of the model `model_name`; None where the store holds no samples.
    """

    prompts: dict[str, Prompt]
    group: dict[str, int]
    pairs: list[TeamPair]
    demonstrations: list[tuple[str, str]]
    targets: dict[str, str]
    own: dict[str, list[Sample]]
    model_name: str | None
    judgements: int
    raters: int
    agreement: Pairwise


def read_team(store: Store, *, model_name: str | None = None, preferred: str | None = None) -> Team:
    """Return what a store holds.

    model_name: whose samples count as the model's own; None = those of `preferred` where there are any, else those of whom there are most.
    Raises ConfigError where there are none of model_name.
    """
    with store.frozen():
        prompts = {prompt.id: prompt for prompt in store.prompts()}
        source_of: dict[str, str] = {}
        sampled: Counter[str] = Counter()
        texts_of: dict[str, list[tuple[str, str]]] = {}
        for candidate in store.candidates():
            if "temperature" in candidate.sampling:
                source_of[candidate.id] = candidate.source
                sampled[candidate.source] += 1
                texts_of.setdefault(candidate.prompt_id, []).append((candidate.id, candidate.text))
        name = _whose(sampled, model_name, preferred, store.where)
        own_ids = {candidate for candidate, source in source_of.items() if source == name}
        pairs: list[TeamPair] = []
        marks: dict[str, list[bool]] = {}
        words: list[Judgement] = []
        demonstrations = [(d.prompt_id, d.text) for d in store.demonstrations()]
        for prompt, judgements, texts in store.judged():
            valid = [j for j in standing(judgements) if j.picked_by != GOLD]
            words += valid
            pairs += _pairs(prompt.id, valid, texts, own_ids)
            demonstrations += [(prompt.id, j.rewrite) for j in valid if j.rewrite and j.rewrite.strip()]
            for judgement in valid:
                for marked, is_good in _marks(judgement).items():
                    marks.setdefault(marked, []).append(is_good)
    targets = {pair.prompt_id: pair.chosen for pair in reversed(pairs) if not pair.own[0]}
    targets |= dict(reversed(demonstrations))
    own: dict[str, list[Sample]] = {}
    for prompt_id, listed in texts_of.items():
        for name_of, text in listed:
            if name_of in own_ids:
                own.setdefault(prompt_id, []).append(Sample(text, fmean(marks[name_of]) if name_of in marks else None))
    used = {pair.prompt_id for pair in pairs} | targets.keys() | own.keys()
    groups = near_duplicate_groups({name: prompt.messages for name, prompt in prompts.items() if name in used})
    numbers = {root: number for number, root in enumerate(dict.fromkeys(groups.values()))}
    return Team(
        prompts=prompts,
        group={name: numbers[root] for name, root in groups.items()},
        pairs=pairs,
        demonstrations=demonstrations,
        targets=targets,
        own=own,
        model_name=name,
        judgements=len(words),
        raters=len({j.rater for j in words}),
        agreement=pairwise_agreement(comparisons(words).first_words()),
    )


def _whose(sampled: Counter[str], model_name: str | None, preferred: str | None, where: str) -> str | None:
    if model_name is not None and model_name not in sampled:
        known = f"There are of {', '.join(sampled)}." if sampled else "preftune sample makes some."
        raise ConfigError(f'there are no samples of "{model_name}"', where, known)
    if model_name or (preferred and preferred in sampled):
        return model_name or preferred
    return next((name for name, _ in sampled.most_common(1)), None)


def _pairs(prompt_id: str, judgements: list[Judgement], texts: dict[str, str], own: set[str]) -> list[TeamPair]:
    found = [
        TeamPair(prompt_id, texts[chosen], texts[rejected], weight, (chosen in own, rejected in own))
        for chosen, rejected, weight in majority_pairs(judgements)
    ]
    rewritten = [(j.rewrite, j.rewrite_of) for j in judgements if j.rewrite and j.rewrite.strip() and j.rewrite_of in texts]
    found += [TeamPair(prompt_id, text, texts[of], 1.0, (False, of in own)) for text, of in rewritten if of]
    return [pair for pair in found if pair.chosen != pair.rejected]


def _marks(judgement: Judgement) -> dict[str, bool]:
    """Return for each candidate that a rater has seen whether it was found good enough; nothing where that was not asked."""
    if judgement.acceptable is None:
        return {}
    seen = {*judgement.presentation, *(c for tier in judgement.ranking for c in tier), *judgement.acceptable}
    return {candidate: candidate in judgement.acceptable for candidate in seen}
