"""TRL's side of a comparison, in an environment of its own: one epoch over given rows, in their order. Imports nothing of ours.

    .venv-peer/bin/python benchmarks/_peer.py SETTINGS.json

SETTINGS.json is what `_work.Settings` writes. Prints one JSON line last. The peer is left as its users have it but for what
makes the losses comparable: float32, no shuffling, a constant learning rate, our AdamW's epsilon and decay.
Gradient checkpointing is off: it would cost the peer a fifth more time.
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
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

KINDS = {"dpo": (DPOConfig, DPOTrainer), "reward": (RewardConfig, RewardTrainer), "sft": (SFTConfig, SFTTrainer)}
CENTRING = 0.01  # ours, always


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


def recording(trainer: type) -> type:
    """Return the trainer with each step's loss kept as it is."""

    class Recording(trainer):  # type: ignore[misc]
        losses: list[float]

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            self.losses.append(float(loss))
            return loss

    return Recording


def main() -> None:
    s = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    config_type, trainer_type = KINDS[s.kind]
    rows = [json.loads(line) for line in Path(s.rows).read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(s.model)
    tokenizer.pad_token = "<|endoftext|>"  # another token than the end of a turn, where the reward model reads its score
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": s.batch_size,
        "num_train_epochs": s.epochs,
        "learning_rate": s.lr,
        "lr_scheduler_type": "constant",
        "adam_epsilon": s.adam_epsilon,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": s.max_tokens,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": s.seed,
    }
    if s.kind == "reward":
        model: Any = AutoModelForSequenceClassification.from_pretrained(s.model, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
        model.score.weight.data.copy_(load_file(s.start)["weight"])
        settings["center_rewards_coefficient"] = CENTRING
        rows = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
    else:
        model = AutoModelForCausalLM.from_pretrained(s.model, dtype=torch.float32)
    if s.kind == "dpo":
        settings["beta"] = s.beta
    if s.kind == "sft":
        settings["completion_only_loss"] = True
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    heads = ["score"] if s.kind == "reward" else None
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", modules_to_save=heads) if s.lora else None
    clock = Clock()
    torch.manual_seed(s.seed)  # the adapter's start: ours is drawn from the same seed
    trainer = recording(trainer_type)(
        model=model,
        args=config_type(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[clock],
    )
    trainer.losses = []
    trainer.train()
    if s.save:
        trainer.save_model(s.save)
    print(json.dumps({"step_seconds": clock.seconds, "step_cpu_seconds": clock.cpu_seconds, "losses": trainer.losses}))


if __name__ == "__main__":
    main()
