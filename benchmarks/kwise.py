"""Nine ranked answers of one prompt, reward model: as one row against as 36 pairs; the last line is one JSON object.

    python benchmarks/kwise.py [--answers K] [--rankings N] [--quick] [--json]

Both sides are the stage's own rows and loss (stages/reward_data.py, stages/reward.py) and do the same step on the same ranking: the
Bradley–Terry loss of all K(K−1)/2 pairs of it, all weights of SmolLM2-135M trained, float32. `ours` has one row
[prompt | answer 1 | … | answer K], so each answer is computed once; `peer` has a row [prompt | chosen | rejected] for each pair, as one
trains on pairs. Prompts are HH's, the K answers are those of K different pairs of it. Each side runs in a process of its own.
max_loss_diff: the largest difference of the two losses at any step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from _compare import QUICK, ROOT, parser_for, run_process
from _work import fitting, make_model, rows_of, write_rows

from preftune.data.batches import split_by_budget
from preftune.data.snapshot import Snapshot
from preftune.models.heads import with_scalar_head
from preftune.models.load import load_causal_lm, load_renderer
from preftune.records import KWise, Message, Pair
from preftune.stages.common import Room
from preftune.stages.reward import Learner, RewardConfig
from preftune.stages.reward_data import encode_rows
from preftune.stages.reward_data import rows_of as learned_rows
from preftune.training.optim import adamw
from preftune.training.step import train_step

LR = 9e-6
TOKEN_BUDGET = 2048


def rankings(file: Path, answers: int) -> list[tuple[list[Message], list[str]]]:
    """Return (prompt, its answers, best first) of each run of rows: the answers are the chosen ones of `answers` rows."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [row["chosen"][0]["content"] for row in rows]
    starts = range(0, len(rows) - answers + 1, answers)
    return [([Message.model_validate(m) for m in rows[i]["prompt"]], texts[i : i + answers]) for i in starts]


def steps(model_folder: Path, rows: Path, answers: int, *, one_row: bool) -> dict[str, Any]:
    """Do an optimiser step on each ranking and return the seconds and the losses."""
    renderer = load_renderer(model_folder)
    model = with_scalar_head(load_causal_lm(model_folder).requires_grad_(True), seed=0)
    optimiser = adamw(model, eps=1e-5)
    nothing = Snapshot(rows, [], [], [], [], [], [], {})
    room = Room(rows.parent, model_folder, nothing, renderer, model, tree=True, max_tokens=8192)
    config = RewardConfig(data="none", model="none", adapter=None)
    seconds, cpu_seconds, losses, tokens = [], [], [], []
    for messages, texts in rankings(rows, answers):
        pairs = [Pair(messages=tuple(messages), chosen=better, rejected=worse) for better, worse in combinations(texts, 2)]
        order = KWise(messages=tuple(messages), completions=tuple(texts), ranks=tuple(range(1, answers + 1)))
        wanted = learned_rows(pairs, [order]) if one_row else [row for pair in pairs for row in learned_rows([pair], [])]
        kept, encoded = encode_rows(renderer, wanted, max_tokens=8192)
        learner = Learner(config, room, kept, flips=0.0, weights=torch.ones(len(kept), 1))
        began, cpu_began = time.perf_counter(), time.process_time()
        done = train_step(
            split_by_budget(encoded.groups, TOKEN_BUDGET),
            count=learner.count,
            loss=learner.loss,
            parameters=model.parameters(),
            optimiser=optimiser,
            lr=LR,
            max_grad_norm=1.0,
            where="kwise",
        )
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
        losses.append(done.loss)
        tokens.append(sum(g.num_tokens for g in encoded.groups))
    return {"step_seconds": seconds, "step_cpu_seconds": cpu_seconds, "losses": losses, "tokens": tokens}


def main() -> None:
    parser = parser_for(__doc__.splitlines()[0], lora=False)
    parser.add_argument("--answers", type=int, default=9)
    parser.add_argument("--rankings", type=int, default=4)
    parser.add_argument("--side", choices=("row", "pairs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        found = steps(options.folder / "model", options.folder / "rows.jsonl", options.answers, one_row=options.side == "row")
        print(json.dumps(found))
        return
    if options.quick:
        options.layers, options.rankings, options.pair_tokens = QUICK["layers"], 2, QUICK["pair_tokens"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model", layers=options.layers)
        count = options.answers * options.rankings
        write_rows(folder / "rows.jsonl", fitting(rows_of(options.data), load_renderer(model), count=count, max_tokens=options.pair_tokens))
        command = [sys.executable, str(ROOT / "benchmarks" / "kwise.py"), "--folder", name, "--answers", str(options.answers), "--side"]
        sides = {side: run_process([*command, side], threads=options.threads, what=side) for side in ("row", "pairs")}
    ours, pairs = sides["row"], sides["pairs"]
    each, cpu_each = (
        [b / a for a, b in zip(ours.figures[key], pairs.figures[key], strict=True)] for key in ("step_seconds", "step_cpu_seconds")
    )
    found = {
        "ours": round(1 / statistics.median(ours.figures["step_seconds"]), 4),
        "peer": round(1 / statistics.median(pairs.figures["step_seconds"]), 4),
        "unit": "rankings/s",
        "ratio": round(statistics.median(each[1:] or each), 2),
        "ratio_least": round(min(each), 2),
        "ratio_most": round(max(each), 2),
        "cpu_time_ratio": round(statistics.median(cpu_each[1:] or cpu_each), 2),
        "memory_ratio": round(ours.peak_memory_gib / pairs.peak_memory_gib, 3),
        "runs": len(each),
        "answers": options.answers,
        "tokens_a_row": round(statistics.mean(ours.figures["tokens"])),
        "max_loss_diff": max(abs(a - b) for a, b in zip(ours.figures["losses"], pairs.figures["losses"], strict=True)),
        "peak_memory_gib": round(ours.peak_memory_gib, 2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
