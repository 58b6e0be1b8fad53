"""Sampling: ours against transformers' own `generate` on the same prompts, in one go; the last line is one JSON object.

    python benchmarks/rollout.py [--quick] [--prompts N] [--samples N] [--new-tokens N] [--runs N] [--json]

The work: SmolLM2-135M-Instruct in float32, 16 prompts of HH × 4 samples × 64 tokens at temperature 1, no end token, so that both
sides draw the same number of tokens. The peer gets all rows in one batch, padded on the left, as its users have it; it needs
nothing but transformers, so both run in this environment, each in a process of its own.
ratio: times more tokens a second than the peer, memory_ratio: our peak over the peer's, max_logprob_diff: the largest difference in nats
between a recorded log-prob and what the training forward pass says of the same token, texts_equal: the share of samples that come out
the same when their prompt is sampled alone (the arithmetic's last bits may tip a draw).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from _compare import HERE, ROOT, Measured, run_process
from _work import make_model, rows_of

MOST_CHARACTERS = 600  # of a prompt
QUICK = {"layers": 2, "prompts": 8, "samples": 2, "new_tokens": 32, "runs": 1}


def side_ours(work: dict[str, Any]) -> dict[str, Any]:
    """Sample with our generator and return the time that it took."""
    from preftune.models.load import load_causal_lm
    from preftune.rollout.generate import generate

    model = load_causal_lm(Path(work["model"])).requires_grad_(False)

    def sample(prompts: list[list[int]], new_tokens: int) -> int:
        samples = generate(
            model,
            prompts,
            samples_per_prompt=work["samples"],
            max_new_tokens=new_tokens,
            temperature=1.0,
            seed=0,
            stop_ids=frozenset(),
            pad_id=work["pad_id"],
        )
        return sum(len(s.ids) for s in samples)

    return timed(sample, work)


def side_peer(work: dict[str, Any]) -> dict[str, Any]:
    """Sample with transformers' `generate` and return the time that it took."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).eval()
    torch.manual_seed(0)

    def sample(prompts: list[list[int]], new_tokens: int) -> int:
        width = max(map(len, prompts))
        ids = torch.tensor([[work["pad_id"]] * (width - len(p)) + p for p in prompts])
        attend = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        drawn = model.generate(
            input_ids=ids,
            attention_mask=attend,
            do_sample=True,
            top_k=0,
            num_return_sequences=work["samples"],
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=work["pad_id"],
        )
        return int(drawn[:, width:].numel())

    with torch.no_grad():
        return timed(sample, work)


def timed(sample: Any, work: dict[str, Any]) -> dict[str, Any]:
    """Sample a little, then all of the work on the clock."""
    sample(work["prompts"][:1], 2)
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = sample(work["prompts"], work["new_tokens"])
    return {"tokens": tokens, "seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def side_check(work: dict[str, Any]) -> dict[str, Any]:
    """Return how far our log-probs lie from the training pass's, and how many texts company changes."""
    import torch

    from preftune.data.batches import Group, collate
    from preftune.models.load import batch_logprobs, load_causal_lm
    from preftune.rollout.generate import generate

    model = load_causal_lm(Path(work["model"])).requires_grad_(False)
    prompts = work["prompts"]
    settings = {"samples_per_prompt": work["samples"], "max_new_tokens": work["new_tokens"], "temperature": 1.0, "seed": 0}
    settings |= {"stop_ids": frozenset(), "pad_id": work["pad_id"]}
    together = generate(model, prompts, keys=[str(i) for i in range(len(prompts))], **settings)
    largest, equal = 0.0, 0
    for i, prompt in enumerate(prompts):
        own = together[i * work["samples"] : (i + 1) * work["samples"]]
        alone = generate(model, [prompt], keys=[str(i)], **settings)
        equal += sum(a.ids == b.ids for a, b in zip(own, alone, strict=True))
        batch = collate([Group(tuple(prompt), tuple(s.ids for s in own), 0)], work["pad_id"])
        with torch.no_grad():
            trained = batch_logprobs(model, batch)[0]
        for number, sample in enumerate(own):
            difference = trained[batch.sequence == number] - torch.tensor(sample.logprobs)
            largest = max(largest, float(difference.abs().max()))
    return {"max_logprob_diff": largest, "texts_equal": equal / len(together)}


def prepare(options: argparse.Namespace, folder: Path) -> Path:
    """Write the model and the work that both sides read."""
    from preftune.models.load import load_renderer
    from preftune.records import Message

    model = make_model(folder / "model", layers=options.layers)
    renderer = load_renderer(model)
    short = (r["prompt"] for r in rows_of(options.data) if sum(len(m["content"]) for m in r["prompt"]) < MOST_CHARACTERS)
    prompts = [renderer.prompt_ids([Message.model_validate(m) for m in prompt]) for prompt in islice(short, options.prompts)]
    work = {"model": str(model), "prompts": prompts, "samples": options.samples, "new_tokens": options.new_tokens}
    file = folder / "work.json"
    file.write_text(json.dumps(work | {"pad_id": renderer.pad_id}), encoding="utf-8")
    print(f"{len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens", file=sys.stderr)
    return file


def measure(side: str, work: Path, options: argparse.Namespace) -> Measured:
    """Run one side once, in a process of its own."""
    found = run_process([sys.executable, str(HERE / "rollout.py"), "--side", side, str(work)], threads=options.threads, what=side)
    print(f"{side}: {found.figures}, {found.peak_memory_gib:.2f} GiB", file=sys.stderr)
    return found


def compare(ours: list[Measured], peers: list[Measured], check: Measured, options: argparse.Namespace) -> dict[str, Any]:
    """Return the JSON object of the comparison."""
    ratios = [_rate(o) / _rate(p) for o, p in zip(ours, peers, strict=True)]
    memories = [o.peak_memory_gib / p.peak_memory_gib for o, p in zip(ours, peers, strict=True)]
    cpu = [_rate(o, "cpu_seconds") / _rate(p, "cpu_seconds") for o, p in zip(ours, peers, strict=True)]
    return {
        "ours": round(statistics.median(map(_rate, ours)), 1),
        "peer": round(statistics.median(map(_rate, peers)), 1),
        "unit": "tokens/s",
        "ratio": round(statistics.median(ratios), 2),
        "ratio_least": round(min(ratios), 2),
        "ratio_most": round(max(ratios), 2),
        "cpu_time_ratio": round(statistics.median(cpu), 2),
        "memory_ratio": round(statistics.median(memories), 3),
        "runs": len(ours),
        "peak_memory_gib": round(statistics.median(o.peak_memory_gib for o in ours), 2),
        "peer_peak_memory_gib": round(statistics.median(p.peak_memory_gib for p in peers), 2),
        "prompts": options.prompts,
        "samples": options.samples,
        "new_tokens": options.new_tokens,
        "max_logprob_diff": round(check.figures["max_logprob_diff"], 7),
        "texts_equal": check.figures["texts_equal"],
    }


def _rate(found: Measured, clock: str = "seconds") -> float:
    return float(found.figures["tokens"] / found.figures[clock])


def main() -> None:
    parser = argparse.ArgumentParser(description="Sampling: ours against transformers' generate on the same prompts.")
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    parser.add_argument("--quick", action="store_true", help="two layers, 8 prompts × 2 samples × 32 tokens, in under a minute")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, help="only the first layers of the model")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder that holds HH's test file")
    parser.add_argument("--side", nargs=2, metavar=("ours|peer|check", "WORK"), help="run one side alone")
    options = parser.parse_args()
    if options.side:
        side = {"ours": side_ours, "peer": side_peer, "check": side_check}[options.side[0]]
        print(json.dumps(side(json.loads(Path(options.side[1]).read_text(encoding="utf-8")))))
        return
    if options.quick:
        for name, value in QUICK.items():
            setattr(options, name, value)
    with tempfile.TemporaryDirectory() as name:
        work = prepare(options, Path(name))
        ours, peers = [], []
        for _ in range(options.runs):
            ours.append(measure("ours", work, options))
            peers.append(measure("peer", work, options))
        check = measure("check", work, options)
    found = compare(ours, peers, check, options)
    if not options.json:
        print(f"{found['ours']} against {found['peer']} tokens/s, {found['peak_memory_gib']} against {found['peer_peak_memory_gib']} GiB")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
