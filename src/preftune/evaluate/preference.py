"""Does a model prefer what people chose? Held-out pairs, read by the policy and by its reference; nothing is sampled.

    h = [log π(chosen) − log ref(chosen)] − [log π(rejected) − log ref(rejected)]        the implicit reward's margin, over beta

A pair is right where h > 0. The accuracy needs no beta, so policies that were trained with different ones compare. The margin grows
with the distance from the reference, whether or not that helps; read it beside the accuracy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from preftune.data.batches import Encoded, encode
from preftune.data.snapshot import Snapshot, load_snapshot
from preftune.data.template import read_template
from preftune.errors import DataError
from preftune.evaluate.statistics import bootstrap_mean, wilson
from preftune.evaluate.subject import Subject
from preftune.manifest import begin, content_seed, hash_folder, write_json
from preftune.models.load import name_in, template_for_base
from preftune.progress import Progress, Silent
from preftune.stages.common import pair_items

PREFERENCE = "preference.json"
BLOCK = 16  # pairs a call to the model, so that progress is seen


def measure_preference(
    model: Path,
    snapshot: Path,
    *,
    reference: Path,
    pairs: int | None = None,
    out: Path = Path("reports"),
    seed: int = 0,
    name: str = "preference",
    chat_template: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Read a snapshot's held-out pairs with `model` and `reference` and return the report's folder (`preference.json` inside).

    reference: what the model was tuned from; a reference without a chat template is read in that of its run. pairs: how many, drawn
    by the seed; None = all. chat_template: as in a config. The same call again returns the same folder, and the reference's own
    log-probs are such a folder too, so they are computed once for all models compared with it.
    Raises DataError where the snapshot holds out fewer than two pairs.
    Source: Rafailov et al. 2305.18290, §4 (the implicit reward). Differs: without beta, which changes no sign.
    """
    progress = progress or Silent()
    project = out.resolve().parent
    is_reference = hash_folder(model) == hash_folder(reference)
    folders = {"model": model, "snapshot": snapshot, "reference": reference}
    config: dict[str, Any] = {"pairs": pairs, "seed": seed}
    if chat_template is not None:
        config["chat_template"] = read_template(chat_template)
    final, work = begin(out, "preference", {k: hash_folder(v) for k, v in folders.items()}, config)
    if work is None:
        return final
    theirs = {}
    if not is_reference:
        template = chat_template or template_for_base(reference, model)
        settings: dict[str, Any] = {"pairs": pairs, "out": out, "seed": seed, "chat_template": template, "progress": progress}
        told = read_preference(measure_preference(reference, snapshot, reference=reference, name="reference", **settings))
        theirs = {row["pair"]: row for row in told["rows"]}
    subject = Subject(model, chat_template=chat_template)
    encoded = _encode(subject, load_snapshot(snapshot), pairs, seed)
    sums: list[list[float]] = []
    with progress.stage(f"{name}: held-out pairs", len(encoded.groups), "pairs") as task:
        for start in range(0, len(encoded.groups), BLOCK):
            block = encoded.groups[start : start + BLOCK]
            sums += subject.completion_logprobs(block)
            task.advance(len(block))
    rows = [{"pair": g.index, "chosen": chosen, "rejected": rejected} for g, (chosen, rejected) in zip(encoded.groups, sums, strict=True)]
    result: dict[str, Any] = {k: name_in(v, project) for k, v in folders.items()}
    result |= {"left_out": dict(encoded.left_out), **_summary(rows, theirs), "rows": rows}
    write_json(work.path / PREFERENCE, result)
    return work.finish(final, paths={k: name_in(v, project) for k, v in folders.items()})


def read_preference(folder: Path) -> dict[str, Any]:
    """Return what a folder of `measure_preference` holds: accuracy and margin with intervals, and the log-probs of each pair."""
    return dict(json.loads((folder / PREFERENCE).read_text(encoding="utf-8")))


def _encode(subject: Subject, snapshot: Snapshot, pairs: int | None, seed: int) -> Encoded:
    if len(snapshot.held_out) < 2:
        raise DataError(
            f"the snapshot holds {len(snapshot.held_out)} pairs out, which show no preference",
            str(snapshot.path),
            "Take a snapshot with a larger held_out.",
        )
    # By the content, so that the same pairs are drawn in whatever order they stand.
    drawn = sorted(enumerate(snapshot.held_out), key=lambda item: content_seed(seed, item[1].model_dump_json()))[:pairs]
    encoded = encode(subject.renderer, pair_items(pair for _, pair in drawn), max_tokens=subject.max_tokens)
    encoded.groups = [replace(group, index=drawn[group.index][0]) for group in encoded.groups]
    return encoded


def _summary(rows: list[dict[str, Any]], theirs: dict[int, dict[str, float]]) -> dict[str, Any]:
    if not theirs:
        return {"accuracy": None, "margin": None}
    for row in rows:
        before = theirs[row["pair"]]
        row["margin"] = (row["chosen"] - before["chosen"]) - (row["rejected"] - before["rejected"])
        row["right"] = 0.5 if row["margin"] == 0 else float(row["margin"] > 0)
    accuracy = wilson(sum(row["right"] for row in rows), len(rows))
    return {"accuracy": asdict(accuracy), "margin": asdict(bootstrap_mean([row["margin"] for row in rows]))}
