"""A project of toy size with a planted preference: an answer that says "a" a few times is better than one that says "b"."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from preftune.data.importing import import_preferences
from preftune.data.snapshot import snapshot
from preftune.models.adapter import Adapter
from preftune.progress import Progress
from preftune.stages import group, ppo, preference, preference_config, reward, sft

WORDS = (
    "lantern copper meadow violin harbour pepper glacier saddle walnut marble thunder basket cobweb ladder orchid pilot quarry ribbon "
    "shadow teapot urchin velvet willow yonder anchor bishop candle dragon ember falcon gravel hollow island jigsaw kettle lemon"
).split()
PAIRS = 36
LORA = Adapter(rank=8)

SAMPLED = {"steps": 8, "prompts_per_step": 8, "samples_per_prompt": 4, "max_new_tokens": 8}
REWARDED = ("ppo", "rloo", "grpo")  # by a reward model

# Settings that let two layers learn in a second or two. lr: (with an adapter, all weights).
STAGES: dict[str, tuple[Any, Any, dict[str, Any], tuple[float, float]]] = {
    "sft": (sft, sft.SFTConfig, {"batch_size": 6, "epochs": 2}, (1e-2, 2e-3)),
    "reward": (reward, reward.RewardConfig, {"batch_size": 6, "epochs": 2}, (1e-2, 2e-3)),
    "dpo": (preference, preference_config.DPOConfig, {"batch_size": 6, "epochs": 2}, (1e-2, 2e-3)),
    "ppo": (
        ppo,
        ppo.PPOConfig,
        {"steps": 6, "prompts_per_step": 8, "samples_per_prompt": 4, "max_new_tokens": 8, "value_lr": 5e-3},
        (3e-3, 1e-3),
    ),
    "rloo": (SimpleNamespace(run=group.rloo), group.RLOOConfig, SAMPLED, (1e-2, 2e-3)),
    "grpo": (SimpleNamespace(run=group.grpo), group.GRPOConfig, SAMPLED, (1e-2, 2e-3)),
}


def planted_rows(count: int = PAIRS, seed: int = 0) -> list[dict[str, Any]]:
    """Return pairs whose better answer says "a" and whose worse one says "b", each two to five times, so either may be longer."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        answers = [" ".join([letter] * rng.randint(2, 5)) for letter in "ab"]
        rows.append({"prompt": f"{WORDS[number]}, {rng.choice(WORDS)}?", "chosen": answers[0], "rejected": answers[1]})
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    """Write rows as JSON lines; a text is written as it is."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Toy:
    """A project folder: `base`, a model that answers with either letter alike, and `data`, a snapshot of the planted pairs."""

    folder: Path
    base: Path
    data: Path
    runs: str = "runs"

    @property
    def out(self) -> Path:
        """Where its runs are."""
        return self.folder / self.runs

    def config(self, stage: str, *, whole: bool = False, **changes: Any) -> Any:
        """Return a stage's config; whole = train all weights. Who is rewarded gets a reward model, trained where there is none yet."""
        _, kind, settings, lrs = STAGES[stage]
        adapter = None if whole else LORA
        values = {"data": str(self.data), "model": str(self.base), "adapter": adapter, "lr": lrs[whole], **settings, **changes}
        if stage in REWARDED and "reward_model" not in values:
            values["reward_model"] = str(self.run("reward"))
        return kind(**values)

    def run(self, stage: str, *, whole: bool = False, progress: Progress | None = None, **changes: Any) -> Path:
        """Run a stage and return its folder; one that a test before has made is found again."""
        return STAGES[stage][0].run(self.config(stage, whole=whole, **changes), self.out, progress=progress)

    def copy(self, folder: Path, *runs: Path) -> Toy:
        """Return the same project elsewhere, with these of its runs only."""
        for part in (self.base, self.data, *runs):
            shutil.copytree(part, folder / part.relative_to(self.folder))
        return Toy(folder, folder / self.base.relative_to(self.folder), folder / self.data.relative_to(self.folder))


def freeze(folder: Path, rows: Iterable[dict[str, Any] | str], **options: Any) -> Path:
    """Import rows into a new store in `folder` and freeze them there."""
    folder.mkdir(parents=True, exist_ok=True)
    import_preferences(write_rows(folder / "rows.jsonl", rows), folder / "store.db")
    return snapshot(folder / "store.db", folder / "snapshots", **options)


def learn(start: Path, rows: list[dict[str, Any]], work: Path, target: Path, **settings: Any) -> Path:
    """Write to `target` the model that SFT of all weights on these demonstrations makes of `start`."""
    data = freeze(work, rows, held_out=0.0)
    config = sft.SFTConfig(data=str(data), model=str(start), adapter=None, warmup=0.0, **settings)
    shutil.copytree(sft.run(config, work / "runs") / "model", target)
    return target


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """On models of this size, a second thread takes more time than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy project that all tests share. Do not change what is there; more runs may be added."""
    folder = tmp_path_factory.mktemp("toy")
    rows = planted_rows()
    said = [{"prompt": row["prompt"], "completion": row[side]} for row in rows for side in ("chosen", "rejected")]
    base = learn(tiny_model_folder, said, folder / "before", folder / "base", epochs=6, batch_size=8, lr=1e-2)
    data = freeze(folder, rows, held_out=0.3)
    return Toy(folder, base, data)


@pytest.fixture(scope="session")
def make_snapshot() -> Callable[..., Path]:
    """Freeze rows in a folder: make_snapshot(folder, rows, held_out=0.3)."""
    return freeze


@pytest.fixture(scope="session")
def teach() -> Callable[..., Path]:
    """Make a model that says what the rows say: teach(start, rows, work, target, epochs=60, lr=5e-3)."""
    return learn
