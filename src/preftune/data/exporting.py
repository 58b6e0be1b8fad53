"""Writing what is in a store for other tools: our own lines, TRL (two), OpenAI, LLaMA-Factory, Argilla 2; each tells what it cannot say.

    own            JSON lines, one a judgement, and one for each demonstration and each prompt with unjudged candidates; nothing is lost
    trl            JSON lines, one a pair, conversational: prompt, chosen, rejected, weight, and margin where all raters said a strength
    trl-unpaired   JSON lines, one an answer that raters call good enough or not, as KTO learns from: prompt, completion, label
    openai         JSON lines, one a pair: input, preferred_output, non_preferred_output
    llamafactory   JSON lines, one a pair in the sharegpt ranking form: conversations, chosen, rejected
    argilla        one JSON array of Argilla 2 records: the prompt, the answers, and a ranking of each rater

Pairs are what all raters say together (`records.majority_pairs`), and each rewrite over what it rewrote. The order is that of arrival, so
that the same store gives the same bytes. Judgements of gold items never leave, nor what takes one of them back.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from preftune.data.aggregate import thumbs_from
from preftune.data.formats.canonical import DEMONSTRATION, JUDGEMENT, PROMPT
from preftune.data.store import Store, pairs_from
from preftune.errors import DataError
from preftune.manifest import disk_errors
from preftune.progress import Progress, Silent, counted
from preftune.records import (
    CHECKS,
    Candidate,
    Demonstration,
    Judgement,
    Message,
    Pair,
    Prompt,
    content_id,
    pairs_of,
    ranked_by,
    standing,
    votes_of,
)

FROM = {"system": "system", "user": "human", "assistant": "gpt"}
BESIDE = ("rationale", "aspects", "acceptable")  # what a judgement says beside pairs
NAMES = {"rationale": "rationales", "strength": "strengths", "acceptable": "words on which answers are good enough",
         "aspects": "ratings by aspect", "rewrite": "rewrites"}  # fmt: skip


@dataclass
class ExportReport:
    """What an export wrote. rows: of the format. judgements: that were read. left_out: what the format cannot say, with how often.

    hint: what the other tool wants beside the file.
    """

    format: str
    path: str | None = None
    rows: int = 0
    judgements: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines for a person."""
        where = f"{self.path}: " if self.path else ""
        lines = [f"{where}{counted(self.rows, 'rows')} ({self.format}) from {counted(self.judgements, 'judgements')}"]
        lines += [f"  {counted(count, what)}" for what, count in self.left_out.items()]
        return [*lines, self.hint] if self.hint else lines


@dataclass(frozen=True)
class _Known:
    """All that is known of one prompt and may leave."""

    prompt: Prompt
    candidates: list[Candidate]
    judgements: list[Judgement]
    demonstrations: list[Demonstration]


def export_preferences(store: Store | Path | str, out: Path, *, format: str = "own", progress: Progress | None = None) -> ExportReport:
    """Write a store's preferences into a file, whole or not at all, and return what it says and does not say.

    format: a key of EXPORTS. Raises DataError where there is no such format, or nothing that it could say.
    """
    report = ExportReport(format, str(out))
    with _opened(store) as opened, _written(out) as file, (progress or Silent()).stage(f"writing {out.name}", unit="rows") as task:
        for text in export_text(opened, format, report):
            file.write(text)
            task.advance()
    return report


def export_text(store: Store, format: str, report: ExportReport) -> Iterator[str]:
    """Yield an export in pieces of text, of one state of the store; report is filled meanwhile, and whole at the end.

    While it goes on nobody else may read through this Store, so a server opens one for it.
    Raises DataError where there is no such format, or, at its end, where there was nothing that it could say.
    """
    if format not in EXPORTS:
        raise DataError(f'there is no export "{format}"', store.where, f"Known are {', '.join(EXPORTS)}.")
    as_array = format == "argilla"
    with store.frozen():
        for row in EXPORTS[format](store, report):
            head = ("[\n" if report.rows == 0 else ",\n") if as_array else ""
            report.rows += 1
            yield f"{head}{json.dumps(row, ensure_ascii=False)}{'' if as_array else chr(10)}"
    if report.rows == 0:
        told = ", ".join(f"{count:,} {what}" for what, count in report.left_out.items())
        raise DataError(
            f"there is nothing to export as {format}{f' ({told})' if told else ''}", store.where, "Collect or import some first."
        )
    if as_array:
        yield "\n]\n"


def _known(store: Store, report: ExportReport) -> Iterator[_Known]:
    for prompt, candidates, judgements, demonstrations in store.contents():
        kept: list[Judgement] = []
        hidden: set[str] = set()
        for said in judgements:
            if said.picked_by in CHECKS or said.supersedes in hidden:
                hidden.add(said.id)
            else:
                kept.append(said)
        if hidden:
            report.left_out["judgements that check a rater (gold items, items asked again) kept back"] += len(hidden)
        report.judgements += len(kept)
        yield _Known(prompt, candidates, kept, demonstrations)


# Our own


def _own(store: Store, report: ExportReport) -> Iterator[dict[str, Any]]:
    for known in _known(store, report):
        about = {"prompt_id": known.prompt.id, "prompt": _messages(known.prompt.messages)}
        about |= {key: value for key, value in (("kind", known.prompt.kind), ("check", known.prompt.check)) if value}
        named: set[str] = set()
        for said in known.judgements:
            here = _named(said)
            named |= here
            candidates = [_candidate(c) for c in known.candidates if c.id in here]
            fields = said.model_dump(mode="json", exclude={"prompt_id"})
            yield {"schema": JUDGEMENT, "judgement_id": said.id, **about, "candidates": candidates, **fields}
        for wished in known.demonstrations:
            yield {"schema": DEMONSTRATION, **about, "text": wished.text, "author": wished.author}
        rest = [_candidate(c) for c in known.candidates if c.id not in named]
        if rest or not (known.judgements or known.demonstrations):
            yield {"schema": PROMPT, **about, "candidates": rest}


def _named(said: Judgement) -> set[str]:
    named = {candidate for tier in said.ranking for candidate in tier}
    return named | {*(said.acceptable or ()), *said.presentation, *filter(None, [said.rewrite_of])}


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {"id": candidate.id, "text": candidate.text, "source": candidate.source, "sampling": candidate.sampling}


def _messages(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


# Pairs


def _pairs(store: Store, report: ExportReport, *, omitted: tuple[str, ...]) -> Iterator[tuple[Pair, list[Judgement], dict[str, str]]]:
    # Each pair, with the judgements and the candidates' texts that it comes from. omitted: what of a judgement has no place.
    for known in _known(store, report):
        texts = {candidate.id: candidate.text for candidate in known.candidates}
        said = standing(known.judgements)
        _tell_pairs(said, known.demonstrations, report.left_out)
        _tell((one for one in said if not _is_thumb(one)), omitted, report.left_out)
        for pair in pairs_from(known.prompt, said, texts):
            yield pair, said, texts


def _tell_pairs(said: list[Judgement], demonstrations: list[Demonstration], left_out: Counter[str]) -> None:
    ties, splits = _undecided(said)
    for count, what in (
        (ties, "ties omitted: the format cannot say tie"),
        (splits, "even splits between raters omitted"),
        (sum(_is_thumb(one) for one in said), "thumbs on one answer omitted: the format has pairs alone"),
        (len(demonstrations), "demonstrations omitted: the format has pairs alone"),
        (sum(one.acceptable == () and len(one.ranking) > 1 for one in said), "rankings of answers that are all bad written as pairs"),
    ):
        if count:
            left_out[what] += count


def _tell(said: Iterable[Judgement], fields: Iterable[str], left_out: Counter[str]) -> None:
    counts = Counter(name for one in said for name in fields if getattr(one, name) not in (None, {}))
    for name, count in counts.items():
        left_out[f"{NAMES[name]} omitted: the format has no place for them"] += count


def _is_thumb(said: Judgement) -> bool:
    return sum(map(len, said.ranking)) == 1


def _undecided(said: list[Judgement]) -> tuple[int, int]:
    # Twos of answers on which all said tie, and those with as many for the one as for the other.
    strict = Counter(two for one in said for two in pairs_of(one))
    tied = {(a, b) if a < b else (b, a) for one in said for tier in one.ranking for a in tier for b in tier if a != b}
    twos = tied | {(min(two), max(two)) for two in strict}
    votes = votes_of(said)
    even = [(a, b) for a, b in twos if votes.get((a, b)) == votes.get((b, a))]
    ties = sum(strict[two] == 0 for two in even)
    return ties, len(even) - ties


def _trl(store: Store, report: ExportReport) -> Iterator[dict[str, Any]]:
    # A column is in every row or in none, as a table wants it.
    votes = (said for said in store.judgements() if said.picked_by not in CHECKS)
    told = Counter(_tells_margin(said) for said in votes if len(said.ranking) > 1 or said.rewrite)
    has_margin = bool(told[True]) and not told[False]
    if told[True] and told[False]:
        report.left_out[f"strengths omitted: {told[False]:,} judgements have none, and a margin is in every row or in none"] = told[True]
    for pair, said, texts in _pairs(store, report, omitted=BESIDE):
        row: dict[str, Any] = {
            "prompt": _messages(pair.messages),
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "weight": round(pair.weight, 6),
        }
        if has_margin:
            row["margin"] = _margin(pair, said, texts)
        yield row


def _tells_margin(said: Judgement) -> bool:
    return said.strength is not None and not said.rewrite


def _margin(pair: Pair, said: list[Judgement], texts: dict[str, str]) -> float:
    # The mean strength of those who prefer the chosen answer.
    strengths = [one.strength or 0 for one in said for a, b in pairs_of(one) if (texts[a], texts[b]) == (pair.chosen, pair.rejected)]
    return round(sum(strengths) / len(strengths), 6)


def _trl_unpaired(store: Store, report: ExportReport) -> Iterator[dict[str, Any]]:
    for known in _known(store, report):
        said = standing(known.judgements)
        asked = [one for one in said if one.acceptable is not None]
        thumbs = list(thumbs_from(known.prompt, said, {candidate.id: candidate.text for candidate in known.candidates}))
        about = {candidate for one in asked for candidate in (*ranked_by(one), *(one.acceptable or ()))}
        for count, what in (
            (sum(sum(map(len, one.ranking)) > 1 for one in said), "comparisons omitted: the format has answers with a label alone"),
            (len(about) - len(thumbs), "answers omitted that as many call good enough as not"),
            (sum(thumb.weight < 1 for thumb in thumbs), "answers on which raters differ written as most say"),
            (len(known.demonstrations), "demonstrations omitted: the format has answers with a label alone"),
        ):
            if count:
                report.left_out[what] += count
        _tell(asked, ("rationale", "aspects"), report.left_out)
        for thumb in thumbs:
            completion = [{"role": "assistant", "content": thumb.completion}]
            yield {"prompt": _messages(thumb.messages), "completion": completion, "label": thumb.desirable}


def _openai(store: Store, report: ExportReport) -> Iterator[dict[str, Any]]:
    for pair, _, _ in _pairs(store, report, omitted=(*BESIDE, "strength")):
        yield {
            "input": {"messages": _messages(pair.messages), "tools": [], "parallel_tool_calls": True},
            "preferred_output": [{"role": "assistant", "content": pair.chosen}],
            "non_preferred_output": [{"role": "assistant", "content": pair.rejected}],
        }


def _llamafactory(store: Store, report: ExportReport) -> Iterator[dict[str, Any]]:
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    file_name = Path(report.path).name if report.path else "preferences.jsonl"
    entry = {"preferences": {"file_name": file_name, "formatting": "sharegpt", "ranking": True, "columns": columns}}
    report.hint = f"In LLaMA-Factory's dataset_info.json: {json.dumps(entry)}"
    for pair, _, _ in _pairs(store, report, omitted=(*BESIDE, "strength")):
        yield {
            "conversations": [{"from": FROM[message.role], "value": message.content} for message in pair.messages],
            "chosen": {"from": "gpt", "value": pair.chosen},
            "rejected": {"from": "gpt", "value": pair.rejected},
        }


# Argilla


def _argilla(store: Store, report: ExportReport) -> Iterator[dict[str, Any]]:
    report.hint = (
        "In Argilla: a ChatField prompt, TextFields response_1 …, a RankingQuestion ranking over them, and a TextQuestion comment. "
        "Raters are the users of these UUIDs."
    )
    for known in _known(store, report):
        said = standing(known.judgements)
        if known.demonstrations:
            report.left_out["demonstrations omitted: a record has answers to rank alone"] += len(known.demonstrations)
        _tell(said, ("aspects", "acceptable", "strength", "rewrite"), report.left_out)
        by_answers: dict[tuple[str, ...], dict[str, Judgement]] = {}
        for one in said:
            if reason := _not_for_argilla(one):
                report.left_out[reason] += 1
                continue
            raters = by_answers.setdefault(tuple(sorted(c for tier in one.ranking for c in tier)), {})
            if one.rater in raters:
                report.left_out["earlier judgements of the same rater on the same answers omitted"] += 1
            raters[one.rater] = one
        texts = {candidate.id: candidate.text for candidate in known.candidates}
        for answers, raters in by_answers.items():
            yield _argilla_record(known.prompt, answers, texts, raters)


def _not_for_argilla(said: Judgement) -> str:
    if sum(map(len, said.ranking)) < 2:
        return "thumbs and undos omitted: a record has rankings alone"
    if any(len(tier) > 1 for tier in said.ranking):
        return "rankings with ties omitted: the format cannot say tie"
    return ""


def _argilla_record(prompt: Prompt, answers: tuple[str, ...], texts: dict[str, str], raters: dict[str, Judgement]) -> dict[str, Any]:
    # The answers are in the order of their ids, which are hashes: an order that says nothing.
    names = {candidate: f"response_{n + 1}" for n, candidate in enumerate(answers)}
    fields = {"prompt": _messages(prompt.messages), **{name: texts[candidate] for candidate, name in names.items()}}
    ranking = [
        {"value": [names[candidate] for tier in said.ranking for candidate in tier], "user_id": _user_id(rater)}
        for rater, said in raters.items()
    ]
    comments = [{"value": said.rationale, "user_id": _user_id(rater)} for rater, said in raters.items() if said.rationale]
    return {
        "id": content_id("argilla", prompt.id, answers),
        "fields": fields,
        "metadata": {},
        "suggestions": {},
        "responses": {"ranking": ranking, **({"comment": comments} if comments else {})},
        "vectors": {},
        "status": "completed",
        "_server_id": None,
    }


def _user_id(rater: str) -> str:
    # Argilla knows its users by UUID; one that came from there keeps its own.
    try:
        return str(uuid.UUID(rater))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"preftune:{rater}"))


EXPORTS: dict[str, Callable[[Store, ExportReport], Iterator[dict[str, Any]]]] = {
    "own": _own,
    "trl": _trl,
    "trl-unpaired": _trl_unpaired,
    "openai": _openai,
    "llamafactory": _llamafactory,
    "argilla": _argilla,
}


@contextmanager
def _opened(store: Store | Path | str) -> Iterator[Store]:
    with nullcontext(store) if isinstance(store, Store) else Store.open(store) as opened:
        yield opened


@contextmanager
def _written(final: Path) -> Iterator[IO[str]]:
    temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    try:
        with disk_errors(final):
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
