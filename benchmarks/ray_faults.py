"""A small RLOO run by two Ray actors, one of which is killed every five seconds for a minute, beside the same run undisturbed.

    python benchmarks/ray_faults.py

Prints one line of JSON last. The bar: no sample lost or doubled, and the same bytes of final weights.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from _work import make_model

from preftune import sample
from preftune.data.importing import import_preferences
from preftune.data.snapshot import snapshot
from preftune.rollout import client
from preftune.rollout.client import Sampler
from preftune.stages.group import RLOOConfig, rloo
from preftune.training.loop import read_metrics

EVERY, FOR = 5.0, 60.0  # seconds
STEPS, PROMPTS, SAMPLES = 60, 8, 4
REWARD = """
def vowels(prompts, completions, facts):
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]
"""


def config_of(folder: Path) -> RLOOConfig:
    """Return the run. What is rewarded is of no matter here, but that no two samples have the same score."""
    return RLOOConfig(
        data=str(folder / "data"),
        model=str(folder / "model"),
        rewards=[{"function": str(folder / "vowels.py:vowels")}],
        no_eos_score=0.0,
        scoring={"missing_end": "add"},  # most samples come to the limit; else that would be their score
        steps=STEPS,
        prompts_per_step=PROMPTS,
        samples_per_prompt=SAMPLES,
        max_new_tokens=24,
        lr=1e-3,
        rollout={"backend": "ray", "workers": 2},
    )


def actors() -> list[int]:
    """Return the process numbers of the actors that this process's own Ray runs."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            names[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it has ended since

    def ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return sorted(pid for pid, name in names.items() if name.startswith("ray::Worker") and ours(pid))


def killing(stop: threading.Event, killed: list[int]) -> None:
    """Kill an actor every few seconds, whichever lives then, until it has been a minute."""
    chosen, began = random.Random(0), time.monotonic()
    while time.monotonic() - began < FOR and not stop.wait(EVERY):
        alive = actors()
        if alive:
            killed.append(chosen.choice(alive))
            os.kill(killed[-1], signal.SIGKILL)


def counted(samples: Counter[tuple[int, str, int]]) -> Callable[..., object]:
    """Return `Sampler.draw`, which counts each sample by step, prompt and number."""
    draw = Sampler.draw

    def drawing(self: Sampler, prompts: object, keys: list[str], *, seed: int, version: int) -> object:
        found = draw(self, prompts, keys, seed=seed, version=version)  # type: ignore[arg-type]
        samples.update((version, keys[s.prompt_index], s.sample_index) for s in found)
        return found

    return drawing


def run(folder: Path, out: str, *, faults: bool) -> tuple[Path, list[int], Counter[tuple[int, str, int]], float]:
    """Do the run, and return (its folder, who was killed, how often each sample came, seconds)."""
    killed: list[int] = []
    samples: Counter[tuple[int, str, int]] = Counter()
    stop, plain = threading.Event(), client.Sampler.draw
    client.Sampler.draw = counted(samples)  # type: ignore[method-assign, assignment]
    killer = threading.Thread(target=killing, args=(stop, killed))
    began = time.monotonic()
    if faults:
        killer.start()
    try:
        made = rloo(config_of(folder), folder / out)
    finally:
        stop.set()
        client.Sampler.draw = plain  # type: ignore[method-assign]
    if faults:
        killer.join()
    return made, killed, samples, time.monotonic() - began


def weights_of(made: Path) -> bytes:
    """Return the bytes of a run's adapter."""
    return (made / "adapter" / "adapter_model.safetensors").read_bytes()


def main() -> None:
    """Run both and print the JSON line."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", layers=2)
        (folder / "vowels.py").write_text(REWARD, encoding="utf-8")
        pairs = folder / "pairs.jsonl"
        rows = sample.train_path().read_text(encoding="utf-8").splitlines()[:24]
        pairs.write_text("\n".join(rows) + "\n", encoding="utf-8")
        import_preferences(pairs, folder / "store.db")
        (folder / "data").symlink_to(snapshot(folder / "store.db", folder / "snapshots", held_out=0.0))
        quiet, _, expected, undisturbed = run(folder, "undisturbed", faults=False)
        disturbed, killed, samples, seconds = run(folder, "disturbed", faults=True)
        equal = weights_of(disturbed) == weights_of(quiet)
        spread = statistics.fmean(row["reward/score_sd"] for row in read_metrics(quiet))
    line = {
        "kills": len(killed),
        "lost": len(expected - samples),
        "doubled": sum(count > 1 for count in samples.values()),
        "samples": STEPS * PROMPTS * SAMPLES,
        "score_sd": round(spread, 4),
        "weights_equal": equal,
        "seconds": round(seconds, 1),
        "seconds_undisturbed": round(undisturbed, 1),
    }
    print(json.dumps(line))
    if line["lost"] or line["doubled"] or not line["weights_equal"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
