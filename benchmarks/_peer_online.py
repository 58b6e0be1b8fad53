"""TRL's side of the RLOO and GRPO comparisons, in an environment of its own. Imports nothing of ours.

    .venv-peer/bin/python benchmarks/_peer_online.py WORK.json

WORK.json is what `_online.prepare` writes. Prints one JSON line last. The peer is left as its users have it but for what makes the work
the same: float32, prompts in their order, one update a step, a constant learning rate, and GRPO's loss as published.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

KINDS = {"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Clock(TrainerCallback):
    """Notes when each step begins and ends."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun = time.perf_counter(), cpu_seconds()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begun[0])
        self.cpu_seconds.append(cpu_seconds() - self.begun[1])


def main() -> None:
    w = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    config_type, trainer_type = KINDS[w.kind]
    tokenizer = AutoTokenizer.from_pretrained(w.model)
    tokenizer.pad_token = "<|endoftext|>"  # another token than the end of a turn
    rows = w.prompts_per_step * w.samples
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": rows,
        "num_generations": w.samples,
        "max_completion_length": w.new_tokens,
        "max_steps": w.steps,
        "beta": w.beta,
        "learning_rate": w.lr,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        "shuffle_dataset": False,
        "gradient_checkpointing": False,  # it would cost the peer a fifth more time
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": w.seed,
    }
    if w.kind == "grpo":
        settings["loss_type"] = "grpo"
    counted: list[float] = []

    def near_200_characters(completions: list[Any], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        counted.append(float(sum(map(len, completion_ids))))
        return [-abs(len(c[0]["content"]) - 200) / 100 for c in completions]

    clock = Clock()
    torch.manual_seed(w.seed)
    trainer = trainer_type(
        model=AutoModelForCausalLM.from_pretrained(w.model, dtype=torch.float32),
        reward_funcs=near_200_characters,
        args=config_type(**settings),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in w.prompts]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=w.rank, lora_alpha=2 * w.rank, lora_dropout=0.0, target_modules="all-linear"),
        callbacks=[clock],
    )
    trainer.train()
    print(json.dumps({"step_seconds": clock.seconds, "step_cpu_seconds": clock.cpu_seconds, "tokens": counted}))


if __name__ == "__main__":
    main()
