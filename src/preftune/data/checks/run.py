"""Running the checks: on pairs, or on a whole store."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preftune.data.agreement import label_noise, pairwise_agreement
from preftune.data.checks.bias import measure_bias
from preftune.data.checks.gather import Gathered
from preftune.data.checks.report import DataReport, problems_of
from preftune.data.checks.tokens import TokenCount
from preftune.data.checks.votes import Votes, count_votes
from preftune.data.comparisons import comparisons
from preftune.data.cycles import find_cycles
from preftune.data.formats import SetAside, read
from preftune.data.private import find_private
from preftune.data.store import Store, pairs_from
from preftune.errors import DataError
from preftune.progress import Progress, Silent
from preftune.records import UNKNOWN, Judgement, Pair, Prompt, content_id

QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}
CONTEXT_TOKENS = 2048  # as in training (max_tokens)


def check_pairs(
    pairs: Iterable[Pair],
    held_out: Iterable[Pair | Prompt] | None = None,
    *,
    tokenizer: Path | None = None,
    context: int = CONTEXT_TOKENS,
    progress: Progress = Silent(),  # noqa: B008 - it holds nothing
) -> DataReport:
    """Return what is in these pairs and what is wrong with them.

    held_out: other pairs or prompts that must share no prompt, nearly alike ones included, with them. tokenizer: a folder with a
    tokenizer.json, to count tokens against the context; without one they are estimated.
    """
    gathered = Gathered(TokenCount(context, tokenizer))
    with progress.stage("pairs", unit="pairs") as task:
        for pair in pairs:
            gathered.add(pair)
            task.advance()
    report = _report(gathered, held_out, progress)
    return replace(report, problems=problems_of(report))


def check_store(
    store: Store,
    held_out: Iterable[Pair | Prompt] | None = None,
    *,
    tokenizer: Path | None = None,
    context: int = CONTEXT_TOKENS,
    progress: Progress = Silent(),  # noqa: B008 - it holds nothing
) -> DataReport:
    """Return what is in a store: `check_pairs` of its pairs, how the raters' votes add up, and what seems private in demonstrations."""
    gathered, votes = Gathered(TokenCount(context, tokenizer)), Votes()
    raters: set[str] = set()
    several: list[Judgement] = []  # on prompts with two and more of them: only they can agree or go in a circle
    counts = store.counts()
    with progress.stage("judgements", total=counts["judgements"], unit="judgements") as task:
        for prompt, judgements, texts in store.judged():
            votes += count_votes(judgements)
            raters.update(judgement.rater for judgement in judgements)
            several += judgements if len(judgements) > 1 else []
            for pair in pairs_from(prompt, judgements, texts):
                gathered.add(pair)
            task.advance(len(judgements))
    for demonstration in store.demonstrations():
        gathered.private.add(demonstration.prompt_id, "demonstration", find_private(demonstration.text))
    table = comparisons(several)
    pairwise = pairwise_agreement(table.first_words())
    report = replace(
        _report(gathered, held_out, progress),
        votes=votes,
        raters=len(raters - {UNKNOWN}),
        agreement=pairwise.strict,
        noise=label_noise(pairwise),
        cycles=find_cycles(table).majority,
        contradictions=votes.contradictions,
        demonstrations=counts["demonstrations"],
    )
    return replace(report, problems=problems_of(report))


def prompts_in(path: Path) -> Iterator[Prompt]:
    """Yield the prompt of every row of a file in any known format, to check for leaks. Raises DataError where a row cannot be read."""
    for item in read(path):
        if isinstance(item, SetAside):
            raise DataError(f"{item.reason} {item.detail}".strip(), f"{path} line {item.line}", "Every held-out prompt must be readable.")
        yield item.prompt


def _report(gathered: Gathered, held_out: Iterable[Pair | Prompt] | None, progress: Progress) -> DataReport:
    total, seen = gathered.num_pairs, gathered.seen
    groups, leaked = _groups(gathered, held_out, progress)
    with progress.stage("length and looks", unit="pairs") as task:
        bias = measure_bias(gathered, groups) if total else None
        task.advance(total)
    foreign = {part: gathered.counts[f"{part} in another language"] for part in ("chosen", "rejected")}
    return DataReport(
        pairs=total,
        prompts=len(gathered.names),
        duplicates=total - len(seen),
        duplicate_share=(total - len(seen)) / total if total else 0.0,
        near_duplicates=len(gathered.names) - len(np.unique(groups)),
        contradictions=sum((prompt, worse, better) in seen for prompt, better, worse in seen if better < worse),
        contested=gathered.counts["contested"],
        empty=gathered.counts["empty"],
        equal=gathered.counts["equal"],
        nearly_equal=gathered.counts["nearly equal"],
        longer_wins=bias.longer_wins.value if bias else 0.5,
        longer_wins_interval=(bias.longer_wins.low, bias.longer_wins.high) if bias else (0.0, 1.0),
        lengths={part: _quantiles(gathered.lengths(part)) for part in ("prompt", "chosen", "rejected")} if total else {},
        leaked=leaked,
        languages=dict(gathered.languages),
        foreign=foreign,
        bias=bias,
        tokens=gathered.tokens.result() if gathered.tokens and total else None,
        private=gathered.private,
    )


def _groups(gathered: Gathered, held_out: Iterable[Pair | Prompt] | None, progress: Progress) -> tuple[NDArray[np.int64], int | None]:
    """Return the number of each prompt's group of near-duplicates, and how many prompts are in one with a held-out prompt."""
    theirs: dict[str, None] = {}
    for item in held_out or ():
        name = content_id("held out", [(message.role, message.content) for message in item.messages])
        if name not in theirs:
            theirs[name] = None
            gathered.near.add(name, item.messages)
    groups = gathered.near.groups(progress)
    numbers: dict[str, int] = {}
    ours = np.array([numbers.setdefault(groups[name], len(numbers)) for name in gathered.names], np.int64)
    there = {groups[name] for name in theirs}
    return ours, None if held_out is None else sum(groups[name] in there for name in gathered.names)


def _quantiles(values: NDArray[np.int32]) -> dict[str, int]:
    ordered = np.sort(values)
    return {name: int(ordered[max(0, math.ceil(share * len(ordered)) - 1)]) for name, share in QUANTILES.items()}
