"""Time and memory of a training step against the number of answers and the prompt's length: shared prompts and plain rows.

    python benchmarks/shapes.py [--quick] [--plot FILE.svg] [--json]

One step is the log-probs of all answers of one prompt and their gradient to all weights of SmolLM2-135M, float32; token ids are
random, each point runs in a process of its own. A shared row computes prompt + answers × answer tokens, plain rows compute
answers × (prompt + answer): the line that is fitted through the seconds of the shared rows against their tokens is the last
line's `seconds_a_token`, and `saved` is what its law says that sharing saves at the largest point, beside what was measured (`ratio`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _compare import ROOT, Measured, parser_for, run_process
from _work import make_model

from preftune.data.batches import Group, collate
from preftune.models.load import batch_logprobs, load_causal_lm

ANSWER_TOKENS = 128
PROMPT_TOKENS = 512
ANSWERS = (1, 2, 4, 6, 9)
PROMPTS = (128, 256, 512, 1024, 1536)
REPEATS = 3


def step(model_folder: Path, prompt_tokens: int, answers: int, *, tree: bool) -> dict[str, Any]:
    """Return the seconds of the quickest of some steps on one random group."""
    model = load_causal_lm(model_folder).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(0, 4096, (prompt_tokens + answers * ANSWER_TOKENS,), generator=generator).tolist()
    texts = [tuple(draw[prompt_tokens + i * ANSWER_TOKENS :][:ANSWER_TOKENS]) for i in range(answers)]
    batch = collate([Group(tuple(draw[:prompt_tokens]), tuple(texts), 0)], 0, tree=tree)
    seconds = []
    for _ in range(REPEATS):
        model.zero_grad(set_to_none=True)
        began = time.perf_counter()
        batch_logprobs(model, batch)[0].sum().backward()
        seconds.append(time.perf_counter() - began)
    return {"seconds": min(seconds), "tokens": batch.ids.numel()}


def points(*, quick: bool) -> list[tuple[int, int]]:
    """Return (prompt tokens, answers) of the two sweeps, each once."""
    if quick:
        return [(128, 1), (128, 4), (256, 4)]
    return list(dict.fromkeys([(PROMPT_TOKENS, k) for k in ANSWERS] + [(p, 2) for p in PROMPTS]))


def draw(path: Path, found: dict[tuple[int, int, bool], Measured]) -> None:
    """Draw time and memory against answers (left) and prompt length (right)."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), sharex="col", layout="constrained")
    for tree, label, colour in ((True, "shared prompt", "#1f4e79"), (False, "plain rows", "#e8a33d")):
        by_answers = sorted((k, m) for (p, k, t), m in found.items() if t == tree and p == PROMPT_TOKENS)
        by_prompt = sorted((p, m) for (p, k, t), m in found.items() if t == tree and k == 2)
        for column, sweep in enumerate((by_answers, by_prompt)):
            xs = [x for x, _ in sweep]
            axes[0, column].plot(xs, [m.figures["seconds"] for _, m in sweep], marker="o", color=colour, label=label)
            axes[1, column].plot(xs, [m.peak_memory_gib for _, m in sweep], marker="o", color=colour, label=label)
    axes[0, 0].set(ylabel="seconds a step", title=f"answers of {ANSWER_TOKENS} tokens to a prompt of {PROMPT_TOKENS}")
    axes[0, 1].set(title=f"two answers of {ANSWER_TOKENS} tokens")
    axes[1, 0].set(ylabel="peak memory, GiB", xlabel="number of answers")
    axes[1, 1].set(xlabel="prompt, tokens")
    axes[0, 0].legend(frameon=False)
    for axis in axes.flat:
        axis.set_ylim(bottom=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = parser_for(__doc__.splitlines()[0], lora=False)
    parser.add_argument("--plot", type=Path, help="draw the figures into this SVG file")
    parser.add_argument("--point", nargs=3, type=int, metavar=("PROMPT", "ANSWERS", "TREE"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        prompt, answers, tree = options.point
        print(json.dumps(step(options.folder / "model", prompt, answers, tree=bool(tree))))
        return
    found: dict[tuple[int, int, bool], Measured] = {}
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name) / "model", layers=2 if options.quick else options.layers)
        command = [sys.executable, str(ROOT / "benchmarks" / "shapes.py"), "--folder", name, "--point"]
        for prompt, answers in points(quick=options.quick):
            for tree in (True, False):
                what = f"prompt {prompt}, {answers} answers, {'shared' if tree else 'plain'}"
                done = run_process([*command, str(prompt), str(answers), str(int(tree))], threads=options.threads, what=what)
                found[prompt, answers, tree] = done
                if not options.json:
                    print(f"{what}: {done.figures['tokens']} tokens, {done.figures['seconds']:.2f} s, {done.peak_memory_gib:.2f} GiB")
    if options.plot:
        draw(options.plot, found)
    shared = [m for (_, _, tree), m in found.items() if tree]
    slope, rest = np.polyfit([m.figures["tokens"] for m in shared], [m.figures["seconds"] for m in shared], 1)
    largest = max((p, k) for p, k, _ in found if k == max(k for _, k, _ in found))
    ours, plain = found[*largest, True], found[*largest, False]
    result = {
        "ours": round(ours.figures["seconds"], 3),
        "peer": round(plain.figures["seconds"], 3),
        "unit": "s a step",
        "ratio": round(plain.figures["seconds"] / ours.figures["seconds"], 2),
        "memory_ratio": round(ours.peak_memory_gib / plain.peak_memory_gib, 3),
        "runs": REPEATS,
        "prompt_tokens": largest[0],
        "answers": largest[1],
        "saved": round(plain.figures["tokens"] / ours.figures["tokens"], 2),
        "seconds_a_token": round(float(slope), 6),
        "seconds_besides": round(float(rest), 3),
        "peak_memory_gib": round(ours.peak_memory_gib, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
