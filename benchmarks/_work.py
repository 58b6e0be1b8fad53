"""The work that ours and the peer do: the model, the pairs, their order, and the settings that both sides read.

Both get the same folder of weights, the same rows in the same order, the same constant learning rate, the same optimiser and the
same template. Two things are made equal that would not be by themselves: the template leaves out the line break that
SmolLM2's writes after an answer's end (the peer would learn it, we end at the end-of-turn token), and pairs that do not fit
into the longest length are left out (the peer would cut them, we leave them out and say so).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from preftune import sample
from preftune.data.batches import batch_indices
from preftune.data.importing import import_preferences
from preftune.data.snapshot import load_snapshot, snapshot
from preftune.data.template import Renderer
from preftune.demo import packaged_model
from preftune.models.checkpoint import save_model
from preftune.models.load import load_causal_lm, load_renderer
from preftune.records import Message

HH = "hh_harmless_test.jsonl.gz"
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
AFTER_ANSWER = "'<|im_end|>' + '\n'}}"
ENDS_AT_TURN = "'<|im_end|>'}}{% if not (loop.last and message['role'] == 'assistant') %}{{ '\n' }}{% endif %}"


@dataclass(frozen=True)
class Settings:
    """What one process is told; `write` makes it a file. `start`: the reward model's head. `save`: where the peer leaves its model."""

    kind: str
    model: str
    snapshot: str
    rows: str
    lora: bool
    batch_size: int
    max_tokens: int
    lr: float
    adam_epsilon: float
    beta: float
    seed: int
    start: str | None
    epochs: int = 1
    save: str | None = None

    def write(self, path: Path) -> Path:
        """Write the settings as JSON and return where."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def read_settings(path: Path) -> Settings:
    """Return the settings of a file."""
    return Settings(**json.loads(path.read_text(encoding="utf-8")))


def make_model(folder: Path, *, layers: int | None) -> Path:
    """Write SmolLM2-135M-Instruct as a float32 folder with the template that ends at the end of a turn; cut to `layers` if given."""
    if folder.exists():
        return folder
    source = packaged_model()
    model, renderer = load_causal_lm(source, device=torch.device("cpu"), dtype=torch.float32), load_renderer(source)
    if AFTER_ANSWER not in renderer.template:
        raise SystemExit(f"{source}: the template is another than the benchmark knows; see benchmarks/_work.py.")
    if layers is not None:
        del model.model.layers[layers:]
        model.config.num_hidden_layers = layers
        model.config.layer_types = None
    template = renderer.template.replace(AFTER_ANSWER, ENDS_AT_TURN)
    save_model(model, Renderer(renderer.tokenizer, chat_template=template), folder)
    return folder


def hh_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield HH's pairs, in the file's order, as conversations whose answers differ in the last turn alone."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            chosen, rejected = (_messages(row[side]) for side in ("chosen", "rejected"))
            same = chosen[:-1] == rejected[:-1] and chosen[-1] != rejected[-1]
            if same and all(m["content"] for m in (*chosen, *rejected)) and chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
                yield {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _messages(transcript: str) -> list[dict[str, str]]:
    parts = TURN.split(transcript)
    return [{"role": ROLES[who], "content": text.strip()} for who, text in zip(parts[1::2], parts[2::2], strict=True)]


def sample_rows() -> Iterator[dict[str, Any]]:
    """Yield the pairs of the built-in sample, for a checkout without HH beside it."""
    for item in sample.items("train"):
        answers = {side: [{"role": "assistant", "content": getattr(item, side)}] for side in ("chosen", "rejected")}
        yield {"prompt": [{"role": "user", "content": item.prompt}], **answers}


def rows_of(data: Path) -> Iterator[dict[str, Any]]:
    """Yield HH's pairs where they lie in `data`, else the built-in sample's."""
    return hh_rows(data / HH) if (data / HH).exists() else sample_rows()


def fitting(rows: Iterator[dict[str, Any]], renderer: Renderer, *, count: int, max_tokens: int) -> list[dict[str, Any]]:
    """Return the first `count` pairs whose prompt and either answer have at most `max_tokens` tokens; a prompt is taken once."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        prompt = [Message.model_validate(m) for m in row["prompt"]]
        longest = max(len(renderer.completion_ids(row[side][0]["content"])) for side in ("chosen", "rejected"))
        if len(renderer.prompt_ids(prompt)) + longest <= max_tokens:
            found.setdefault(json.dumps(row["prompt"]), row)
        if len(found) == count:
            break
    return list(found.values())


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines and return where."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def freeze(rows: list[dict[str, Any]], folder: Path) -> Path:
    """Import rows as a user would and return the snapshot, all of it to train on."""
    store = folder / "store.db"
    import_preferences(write_rows(folder / "pairs.jsonl", rows), store, format="trl")
    return snapshot(store, folder / "snapshots", held_out=0.0)


def in_training_order(data: Path, *, batch_size: int, seed: int) -> list[dict[str, Any]]:
    """Return a snapshot's pairs as TRL's rows, in the order in which our stage takes them in the first epoch."""
    pairs = load_snapshot(data).train
    steps = -(-len(pairs) // batch_size)
    order = [i for step in range(steps) for i in batch_indices(len(pairs), batch_size, step, seed=seed)]
    return [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in pairs[i].messages],
            "chosen": [{"role": "assistant", "content": pairs[i].chosen}],
            "rejected": [{"role": "assistant", "content": pairs[i].rejected}],
        }
        for i in order
    ]
