"""Time to quality, DPO: how long ours takes for the held-out preference accuracy that TRL has after its epoch; last line JSON.

    python benchmarks/time_to_quality.py [--pairs 300] [--held-out 200] [--quick] [--json]

The peer trains all weights for one epoch. Ours trains on the same pairs in the same order for one epoch, and for more where its
accuracy is below the peer's by then (at most three); the time of the first that reaches it counts whole, reference pass included.
Accuracy, measured by the same code for both: the share of held-out pairs whose chosen answer gained more log-probability on the
start than the rejected one. Pairs are of at most 512 tokens, since the peer needs 15 GiB for longer ones. The peer's time is that
of its steps; loading counts on neither side.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _compare import measure, options_of, parser_for, prepare
from _work import fitting, rows_of
from torch import Tensor

from preftune.data.batches import Group, collate, encode, split_by_budget
from preftune.losses.reduce import sequence_sum
from preftune.losses.reward import accuracy
from preftune.models.load import batch_logprobs, load_causal_lm, load_renderer
from preftune.records import Message

MOST_EPOCHS = 3
PAIR_TOKENS = 512


@torch.no_grad()
def answer_logprobs(folder: Path, groups: list[Group], pad_id: int) -> Tensor:
    """Return log π of each pair's answers, summed over their tokens, float32 [pairs, 2]."""
    model = load_causal_lm(folder)
    found: dict[int, Tensor] = {}
    for part in split_by_budget(groups, 2048):
        batch = collate(part, pad_id)
        sums = sequence_sum(batch_logprobs(model, batch)[0], batch.sequence, batch.num_sequences).reshape(-1, 2)
        found |= {group.index: row for group, row in zip(part, sums, strict=True)}
    return torch.stack([found[group.index] for group in groups])


def main() -> None:
    parser = parser_for(__doc__.splitlines()[0], lora=False)
    parser.add_argument("--held-out", type=int, default=200)
    parser.set_defaults(pairs=300, runs=1, pair_tokens=PAIR_TOKENS)
    options = options_of(parser)
    if options.quick:
        options.held_out = 16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = replace(prepare("dpo", options, folder), save=str(folder / "peer"))
        settings.write(folder / "settings.json")
        start, renderer = Path(settings.model), load_renderer(Path(settings.model))
        rows = fitting(rows_of(options.data), renderer, count=options.pairs + options.held_out, max_tokens=options.pair_tokens)
        items = [
            ([Message.model_validate(m) for m in row["prompt"]], [row[side][0]["content"] for side in ("chosen", "rejected")])
            for row in rows[options.pairs :]
        ]
        groups = encode(renderer, items, max_tokens=settings.max_tokens).groups
        before = answer_logprobs(start, groups, renderer.pad_id)

        def accuracy_of(model: Path) -> float:
            gained = answer_logprobs(model, groups, renderer.pad_id) - before
            return float(accuracy(gained[:, 0], gained[:, 1]).mean())

        peer = measure("peer", options, folder, 0)
        wanted = accuracy_of(folder / "peer")
        print(f"the peer: {wanted:.3f} after {peer.whole_seconds / 60:.1f} min", file=sys.stderr)
        for epochs in range(1, MOST_EPOCHS + 1):
            replace(settings, epochs=epochs).write(folder / "settings.json")
            ours = measure("ours", options, folder, epochs)
            reached = accuracy_of(Path(ours.figures["run"]))
            print(f"ours: {reached:.3f} after {ours.whole_seconds / 60:.1f} min ({epochs} epochs)", file=sys.stderr)
            if reached >= wanted:
                break
    found: dict[str, Any] = {
        "ours": round(ours.whole_seconds / 60, 2),
        "peer": round(peer.whole_seconds / 60, 2),
        "unit": "min",
        "ratio": round(peer.whole_seconds / ours.whole_seconds, 2),
        "memory_ratio": round(ours.peak_memory_gib / peer.peak_memory_gib, 3),
        "runs": 1,
        "accuracy": round(reached, 4),
        "peer_accuracy": round(wanted, 4),
        "reached": reached >= wanted,
        "epochs": epochs,
        "held_out": len(groups),
        "pairs": options.pairs,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
