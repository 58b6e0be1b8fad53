"""What a snapshot is made of: each prompt with all that is said of it, brought together over raters, filtered, counted and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from preftune.data.aggregate import Preference, by_model, by_votes, dawid_skene, kwise_from, read_weights, thumbs_from, ties_from
from preftune.data.checks import Votes, count_votes
from preftune.data.comparisons import comparisons
from preftune.data.filters import Filters, SizeLimit, from_sources, judgement_filter, kept_judgements, of_kind
from preftune.data.formats import Row
from preftune.data.snapshot_files import Example, PartsWriter
from preftune.data.splits import Split
from preftune.data.store import Store, pairs_from
from preftune.records import Candidate, Demonstration, Judgement, KWise, Pair, Prompt, Record, Thumb, Tie, ranked_by, standing

Aggregate = Literal["majority", "weighted", "dawid-skene"]
Prefer = Callable[[list[Judgement]], list[Preference]]
R = TypeVar("R", KWise, Tie, Thumb)
# What is counted on each side, and the parts that hold it: on the training side, and held out.
PARTS_OF_A_SIDE = {
    "pairs": ("train", "held_out"),
    "kwise": ("kwise", "kwise_held_out"),
    "demonstrations": ("demonstrations", "demonstrations_held_out"),
    "prompts": ("prompts", "prompts_held_out"),
    "ties": ("ties", "ties_held_out"),
    "thumbs": ("thumbs", "thumbs_held_out"),
}


@dataclass(frozen=True)
class Aggregation:
    """How raters are brought together: what gives the preferences on one prompt, the weights of raters, and facts for the manifest."""

    prefer: Prefer
    weights: dict[str, float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class PromptContents:
    """A prompt with all that is said of it."""

    prompt: Prompt
    judgements: list[Judgement] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    demonstrations: list[Demonstration] = field(default_factory=list)

    def add(self, more: PromptContents) -> None:
        """Add what another source says of the same prompt."""
        known = {j.id for j in self.judgements}
        self.judgements += [j for j in more.judgements if j.id not in known]
        self.candidates += more.candidates
        self.demonstrations += more.demonstrations


@dataclass
class Counts:
    """What was written and what was left out; `sides` by side and part, the others by reason."""

    sides: dict[str, Counter[str]] = field(default_factory=lambda: {side: Counter() for side in ("train", "held_out", "dropped")})
    votes: Votes = field(default_factory=Votes)
    judgements: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return what was written to each side, and what was dropped, by what it was."""
        sides: dict[str, dict[str, Any]] = {side: {part: found[part] for part in PARTS_OF_A_SIDE} for side, found in self.sides.items()}
        sides["dropped"]["reason"] = "nearly alike a prompt that was given to be held out"
        return sides

    def left_out(self) -> dict[str, dict[str, int]]:
        """Return what was left out, by what it was and why."""
        named = {"judgements": self.judgements, "pairs": self.pairs, "others": self.others}
        return {name: {reason: n for reason, n in sorted(found.items()) if n} for name, found in named.items()}


def contents_of(store: Store, listed: list[Row]) -> Iterator[PromptContents]:
    """Yield every prompt of the store and then of the list; what the list says of a prompt is added to what the store says."""
    extra: dict[str, PromptContents] = {}
    for row in listed:
        more = PromptContents(row.prompt, list(row.judgements), list(row.candidates))
        more.demonstrations += row.demonstrations
        if row.prompt.id in extra:
            extra[row.prompt.id].add(more)
        else:
            extra[row.prompt.id] = more
    for prompt, candidates, judgements, demonstrations in store.contents():
        found = PromptContents(prompt, judgements, candidates, demonstrations)
        if found.prompt.id in extra:
            found.add(extra.pop(found.prompt.id))
        yield found
    yield from extra.values()


def aggregation_of(store: Store, listed: list[Row], filters: Filters, aggregate: Aggregate, rater_weights: Path | None) -> Aggregation:
    """Return how raters are brought together; Dawid and Skene's model is fitted here, on all judgements that the filters keep."""
    match aggregate:
        case "majority":
            return Aggregation(by_votes)
        case "weighted":
            weights = read_weights(Path(rater_weights or ""))
            return Aggregation(lambda judgements: by_votes(judgements, weights), weights)
        case "dawid-skene":
            why, uncounted = judgement_filter(filters), Counter[str]()
            kept = (j for found in contents_of(store, listed) for j in kept_judgements(found.judgements, why, uncounted))
            model = dawid_skene(comparisons(kept))
            preferences = model.preferences()
            facts = {"rater_accuracy": dict(sorted(model.accuracy.items())), "expected_error": model.expected_error}
            return Aggregation(lambda judgements: by_model(judgements, preferences), facts={"dawid_skene": facts})


def write_contents(
    writer: PartsWriter, contents: Iterable[PromptContents], split: Split, aggregation: Aggregation, filters: Filters, limit: SizeLimit
) -> Counts:
    """Write every prompt's records to its side's parts, and return what was written and left out."""
    counts, why = Counts(), judgement_filter(filters, aggregation.weights)
    for found in contents:
        prompt = found.prompt
        side = "train" if prompt.id in split.train else "held_out" if prompt.id in split.held_out else "dropped"
        if not of_kind(filters, prompt):
            counts.others["prompts of another kind"] += 1
            continue
        if not _is_text(prompt):
            counts.others["prompts with half of a surrogate pair"] += 1
            continue
        if not limit.fits(prompt.messages):
            counts.others["prompts too long"] += 1
            continue
        kept = kept_judgements(found.judgements, why, counts.judgements)
        undone = len(found.judgements) - len(standing(found.judgements))
        counts.votes += count_votes(kept) if not undone else count_votes(kept) + Votes(judgements=undone, superseded=undone)
        preferences = aggregation.prefer(kept)
        parts: dict[str, Sequence[Record]] = {
            "pairs": _pairs(found, kept, preferences, filters, limit, counts),
            "ties": _ties(found, kept, preferences, aggregation.weights, filters, limit, counts),
            "thumbs": _thumbs(found, kept, aggregation.weights, filters, limit, counts),
            "kwise": _kwise(found, kept, aggregation.weights, filters, limit, counts),
            "demonstrations": _demonstrations(found, kept, limit, counts),
            "prompts": [prompt],
        }
        for name, records in parts.items():
            counts.sides[side][name] += len(records)
            if side != "dropped":
                part = PARTS_OF_A_SIDE[name][side == "held_out"]
                for record in records:
                    writer.add(part, record)
    return counts


def _is_text(prompt: Prompt) -> bool:
    # No database takes half of a surrogate pair in a text, but in JSON, where it is written out, it does: that is how messages are kept.
    try:
        for message in prompt.messages:
            message.content.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pairs(
    found: PromptContents, kept: list[Judgement], preferred: list[Preference], filters: Filters, limit: SizeLimit, counts: Counts
) -> list[Pair]:
    sources = {c.id: c.source for c in found.candidates}
    preferences = []
    for preference in preferred:
        if not from_sources(filters, sources, preference.chosen, preference.rejected):
            counts.pairs["source"] += 1
        elif filters.min_agreement is not None and (1 + preference.weight) / 2 < filters.min_agreement:
            counts.pairs["agreement"] += 1
        else:
            preferences.append(preference)
    rewriters = [j for j in kept if j.rewrite_of is None or from_sources(filters, sources, j.rewrite_of)]
    counts.pairs["source"] += len(kept) - len(rewriters)
    texts = {c.id: c.text for c in found.candidates}
    pairs = []
    for pair in pairs_from(found.prompt, rewriters, texts, preferences):
        if limit.fits(found.prompt.messages, pair.chosen, pair.rejected):
            pairs.append(pair)
        else:
            counts.pairs["too long"] += 1
    return pairs


def _kwise(
    found: PromptContents, kept: list[Judgement], weights: dict[str, float] | None, filters: Filters, limit: SizeLimit, counts: Counts
) -> list[KWise]:
    if all(len(ranked_by(judgement)) < 3 for judgement in kept):
        return []
    texts, wanted = _of_sources(found, kept, filters, ranked_by)
    orders = kwise_from(found.prompt, wanted, texts, weights)
    return _fitting("orders", list(orders), lambda order: order.completions, limit, counts)


def _ties(
    found: PromptContents,
    kept: list[Judgement],
    preferred: list[Preference],
    weights: dict[str, float] | None,
    filters: Filters,
    limit: SizeLimit,
    counts: Counts,
) -> list[Tie]:
    if all(len(tier) == 1 for judgement in kept for tier in judgement.ranking):
        return []
    texts, wanted = _of_sources(found, kept, filters, ranked_by)
    ties = ties_from(found.prompt, wanted, texts, preferred, weights)
    return _fitting("ties", list(ties), lambda tie: tie.completions, limit, counts)


def _thumbs(
    found: PromptContents, kept: list[Judgement], weights: dict[str, float] | None, filters: Filters, limit: SizeLimit, counts: Counts
) -> list[Thumb]:
    if all(judgement.acceptable is None for judgement in kept):
        return []
    texts, wanted = _of_sources(found, kept, filters, lambda judgement: [*ranked_by(judgement), *(judgement.acceptable or ())])
    thumbs = thumbs_from(found.prompt, wanted, texts, weights)
    return _fitting("thumbs", list(thumbs), lambda thumb: (thumb.completion,), limit, counts)


def _of_sources(
    found: PromptContents, kept: list[Judgement], filters: Filters, speaks_of: Callable[[Judgement], list[str]]
) -> tuple[dict[str, str], list[Judgement]]:
    """Return the text of each answer from a wanted source, by id, and the judgements that speak of these alone."""
    texts = {c.id: c.text for c in found.candidates if not filters.sources or c.source in filters.sources}
    return texts, [judgement for judgement in kept if texts.keys() >= set(speaks_of(judgement))]


def _fitting(what: str, rows: list[R], answers: Callable[[R], Sequence[str]], limit: SizeLimit, counts: Counts) -> list[R]:
    fitting = [row for row in rows if limit.fits(row.messages, *answers(row))]
    if len(fitting) < len(rows):
        counts.others[f"{what} too long"] += len(rows) - len(fitting)
    return fitting


def _demonstrations(found: PromptContents, kept: list[Judgement], limit: SizeLimit, counts: Counts) -> list[Example]:
    """Return the demonstrations of a prompt, rewrites among them, each text once, in the order of the texts."""
    texts = {demonstration.text for demonstration in found.demonstrations}
    texts |= {judgement.rewrite for judgement in kept if judgement.rewrite and judgement.rewrite.strip()}
    about = {"group": found.prompt.id, "kind": found.prompt.kind, "check": found.prompt.check}
    fitting = [text for text in sorted(texts) if limit.fits(found.prompt.messages, text)]
    if len(fitting) < len(texts):
        counts.others["demonstrations too long"] += len(texts) - len(fitting)
    return [Example(messages=found.prompt.messages, completion=text, **about) for text in fitting]
