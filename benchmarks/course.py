"""The same course, whatever the number of processes: every stage in 1, 2 and 4 of them, and runs that go on in another number.

    python benchmarks/course.py [--float64] [--json]

The work: ten steps of each of sft, reward, dpo, ppo and rloo on a random model of two layers with SmolLM2's vocabulary, on the CPU.
sft, reward and dpo train all weights, ppo and rloo an adapter. A run of dpo is also stopped after its fourth step, and goes on: 2 to 1,
1 to 2, 2 to 4 and 2 to 2 processes.

`max_loss_diff` and `max_grad_norm_diff`: the largest over all steps of all stages in 2 and in 4 processes, each beside one;
`max_grad_norm_share`: the largest share of its step's norm that a norm differs by. `stages` has the three of each,
and after how many steps the losses leave their bar: where a token of a sample falls otherwise, since rounding moved the border between two
tokens past the number drawn, ppo and rloo learn from other samples from there on.
`resumed_loss_diff`: beside the run that was not stopped, of as many processes as the first part had. `same_bits`: whether 2 to 2 logs and
saves what the undisturbed run of two does, to the last bit. One torchrun for each number does all its runs, so that libraries load once.

--float64 does the same with a copy of the package that computes, and keeps, in float64 whatever it does in float32, and logs all digits:
what is then left of a difference is not rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from _compare import ROOT
from _work import make_model
from scale import LOSS, apart
from transformers import AutoConfig, AutoModelForCausalLM

from preftune import sample
from preftune.data.importing import import_preferences
from preftune.data.snapshot import snapshot
from preftune.training.loop import read_metrics

STAGES = ("sft", "reward", "dpo", "ppo", "rloo")
OFFLINE: dict[str, Any] = {"batch_size": 4, "token_budget": 512, "max_tokens": 256, "adapter": None, "lr": 1e-3}
ONLINE: dict[str, Any] = {
    "steps": 10,
    "prompts_per_step": 8,
    "samples_per_prompt": 2,
    "max_new_tokens": 16,
    "token_budget": 512,
    "lr": 1e-3,
    # The random model ends no answer by itself; judged alike, all would teach nothing, and what is compared would be the rounding.
    "no_eos_score": 0.0,
    "scoring": {"missing_end": "add"},
}
WAYS = ((2, 1), (1, 2), (2, 4), (2, 2))
STOP_AT = 4
# What a copy of the package says in another way to compute in float64. One file stays as it is: oneDNN's products have no float64.
FLOAT64 = {
    "torch.float32": "torch.float64",
    "np.float32": "np.float64",
    ".float()": ".double()",
    '"<f4"': '"<f8"',
    "4 * group.num_completion_tokens": "8 * group.num_completion_tokens",
    "round(float(v), 6)": "float(v)",
}
AS_IT_IS = "product.py"
BARS = {"max_loss_diff": 1e-5, "max_grad_norm_diff": 1e-4, "resumed_loss_diff": 1e-5, "same_bits": True}

# What each process does: one command after the other, of which some are stopped after a step.
SCRIPT = """
import json, os, signal, sys, torch
torch.set_num_threads(1)
if "FLOAT64" in os.environ:
    torch.set_default_dtype(torch.float64)
from preftune._cli_output import run_app
from preftune.cli import app
from preftune.training import loop

log, stop = loop.Loop.log, [0]

def log_and_stop(self, step, metrics):
    log(self, step, metrics)
    if step + 1 == stop[0] and os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), signal.SIGTERM)

loop.Loop.log = log_and_stop
for words, stop[0] in json.loads(open(sys.argv[1]).read()):
    code = run_app(app, words, debug=True)
    if code:
        break
sys.stdout.flush(); sys.stderr.flush()
os._exit(code)
"""


def prepare(folder: Path) -> tuple[Path, Path]:
    """Return a random model of two small layers, and a snapshot of 45 pairs of the built-in sample, of which 40 are trained on."""
    model = make_model(folder / "model", layers=2)
    config = AutoConfig.from_pretrained(model)
    config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim = 32, 64, 4, 2, 8
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(model)
    rows = sample.train_path().read_text(encoding="utf-8").splitlines()[:45]
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    import_preferences(folder / "pairs.jsonl", folder / "store.db")
    return model, snapshot(folder / "store.db", folder / "snapshots", held_out=0.1)


def in_float64(folder: Path) -> Path:
    """Return where a copy of the package lies that computes in float64."""
    source = shutil.copytree(ROOT / "src", folder / "src")
    text = ""
    for file in source.rglob("*.py"):
        if file.name != AS_IT_IS:
            changed = file.read_text(encoding="utf-8")
            text += changed
            for plain, wide in FLOAT64.items():
                changed = changed.replace(plain, wide)
            file.write_text(changed, encoding="utf-8")
    if gone := [plain for plain in FLOAT64 if plain not in text]:
        raise SystemExit(f"The package no longer says {gone[0]}: mend FLOAT64.")
    return source


def words(stage: str, settings: dict[str, Any], folder: Path, out: str) -> list[str]:
    """Return a command that trains a stage."""
    config = folder / f"{stage}.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return ["train", stage, str(config), "--out", str(folder / out), "--json"]


def launch(folder: Path, processes: int, commands: list[tuple[list[str], int]], more: dict[str, str]) -> list[Path]:
    """Do these commands in so many processes and return the run of each that came to its end. A number is the step to stop after.

    more: of the environment.
    """
    script, listed = folder / "commands.py", folder / f"commands-{processes}.json"
    script.write_text(SCRIPT, encoding="utf-8")
    listed.write_text(json.dumps(commands), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(script), str(listed)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")} | more,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{processes} processes failed:\n{done.stderr[-5000:]}")
    said, runs = done.stdout.strip(), []
    while said:
        one, end = json.JSONDecoder().raw_decode(said)
        runs.append(Path(one["path"]))
        said = said[end:].strip()
    return runs


def beside_one(one: list[dict[str, float]], other: list[dict[str, float]], loss: str) -> list[float]:
    """Return by how much two runs' losses, norms, and norms as a share differ, and after how many steps the losses leave their bar."""
    pairs = list(zip(one, other, strict=True))
    alike = next((number for number, (a, b) in enumerate(pairs) if abs(a[loss] - b[loss]) > BARS["max_loss_diff"]), len(pairs))
    return [apart(one, other, loss), apart(one, other, "grad_norm"), apart(one, other, "grad_norm", share=True), alike]


def same_bits(one: Path, other: Path) -> bool:
    """Say whether two runs logged the same, times aside, and saved the same weights."""
    logged = [[{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run)] for run in (one, other)]
    files = [file.relative_to(one) for file in one.rglob("*.safetensors")]
    return logged[0] == logged[1] and bool(files) and all((one / file).read_bytes() == (other / file).read_bytes() for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the last line alone (nothing else is printed)")
    parser.add_argument("--float64", action="store_true", help="all in float64")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, data = prepare(folder)
        more = {"PYTHONPATH": str(in_float64(folder)), "FLOAT64": "1"} if options.float64 else {}
        common = {"model": str(model), "data": str(data)}
        (reward,) = launch(folder, 1, [(words("reward", {**common, **OFFLINE}, folder, "reward"), 0)], more)
        online = {**common, **ONLINE, "reward_model": str(reward)}
        settings = {stage: online if stage in LOSS else {**common, **OFFLINE} for stage in STAGES}

        def broken(first: int, then: int, stop: int) -> tuple[list[str], int]:
            return words("dpo", settings["dpo"], folder, f"{first}-{then}"), stop

        def all_stages(processes: int) -> list[tuple[list[str], int]]:
            return [(words(stage, settings[stage], folder, f"{processes}/runs"), 0) for stage in STAGES]

        stopped = {count: [broken(first, then, STOP_AT) for first, then in WAYS if first == count] for count in (1, 2, 4)}
        runs: dict[Any, list[Path]] = {count: launch(folder, count, stopped[count] + all_stages(count), more) for count in (1, 2, 4)}
        for first, then in WAYS:
            runs[first, then] = launch(folder, then, [broken(first, then, 0)], more)
        logged = {key: [read_metrics(run) for run in found] for key, found in runs.items()}
        stages = {
            f"{stage} in {count}": beside_one(one, other, LOSS.get(stage, "loss/train"))
            for count in (2, 4)
            for stage, one, other in zip(STAGES, logged[1], logged[count], strict=True)
        }
        dpo = STAGES.index("dpo")
        resumed = {f"{a} to {b}": apart(logged[a][dpo], logged[a, b][0], "loss/train") for a, b in WAYS}
        result = {
            "benchmark": "course",
            "max_loss_diff": max(loss for loss, *_ in stages.values()),
            "max_grad_norm_diff": max(norm for _, norm, *_ in stages.values()),
            "max_grad_norm_share": max(share for _, _, share, _ in stages.values()),
            "resumed_loss_diff": max(resumed.values()),
            "same_bits": same_bits(runs[2][dpo], runs[2, 2][0]),
            "stages": {name: [float(f"{value:.2g}") for value in found] for name, found in stages.items()},
            "resumed": resumed,
            "steps": len(logged[1][dpo]),
            "torch": torch.__version__,
            "bars": BARS,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
