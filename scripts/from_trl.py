"""Turn a TRL config into ours, and say what could not be taken over.

    python scripts/from_trl.py dpo --config dpo.yaml --beta 0.2 > ours.yaml
    preftune train dpo ours.yaml data=snapshots/… model=base

The first word is TRL's own command (sft, reward, dpo, kto, grpo, rloo) or a trainer of its experimental part (cpo, orpo); what
follows is what one gives to it: `--config FILE`, `--flag value`, `--flag=value`, `--flag`. Our YAML goes to stdout. Flags that
have no counterpart, and what TRL does by itself and ours does not, go to stderr, one a line, with the reason. Values that TRL
takes by itself and that are others than ours are written out, so that the result is the same training.

The tables below are also those of docs/moving-from-trl.md: `python scripts/from_trl.py --tables` prints them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preftune.config import Config, check_config
from preftune.errors import ConfigError, PreftuneError
from preftune.stages.group import GRPOConfig, RLOOConfig
from preftune.stages.preference_config import DPOConfig
from preftune.stages.reward import RewardConfig
from preftune.stages.sft import SFTConfig


@dataclass(frozen=True)
class To:
    """A flag that has a counterpart: our key, and what is to be known about it."""

    key: str
    note: str = ""


@dataclass(frozen=True)
class Not:
    """A flag that has none: why. harmless: the training is the same without it, so it is not listed when a config is turned."""

    why: str
    harmless: bool = False


Rule = To | Not
MEASURED = Not("found by itself", harmless=True)
HUB = Not("nothing is fetched or pushed: give a folder, and copy the release where it belongs", harmless=True)
LOGGING = Not("every step is in the run's metrics.jsonl", harmless=True)
SAVING = Not("a run saves as often as costs at most a twentieth of its time, and goes on by itself when started again", harmless=True)
SEVERAL = Not("one process")
DATASET = Not("import the data and freeze a snapshot: preftune import, preftune snapshot")
PREFERENCE_ONLY = Not("of mixture-of-experts models, whose router is not trained towards balance here")
DROPOUT = Not("dropout is always off: policy and reference must agree at the start", harmless=True)
PADDING = Not("rows are cut to a token budget; padding does not change the result", harmless=True)
REFERENCE = Not("the reference is always computed once and kept in the project", harmless=True)
OFFLOADING = Not("activations stay where they are; set token_budget lower")
VLLM = Not("samples come from our own generator, in the trainer's process")
LOSS_OPTION = Not("no such loss here")
FOLLOWS = Not("set reference_update.every and reference_update.mix")

SHARED: dict[str, Rule] = {
    "model_name_or_path": To("model", "a folder on this machine, a .gguf file or a run of ours"),
    "dataset_name": DATASET,
    "dataset_config": DATASET,
    "dataset_train_split": DATASET,
    "dataset_test_split": DATASET,
    "dataset_streaming": DATASET,
    "datasets": DATASET,
    "streaming": DATASET,
    "test_split_size": Not("preftune snapshot --held-out SHARE; groups of near-duplicates stay on one side"),
    "output_dir": Not("runs/<id>, named by what made it", harmless=True),
    "learning_rate": To("lr"),
    "num_train_epochs": To("epochs", "whole ones; TRL's own default is 3"),
    "max_steps": Not("a run is so many epochs"),
    "per_device_train_batch_size": To("batch_size", "times gradient_accumulation_steps: an optimiser step's examples"),
    "gradient_accumulation_steps": To("batch_size", "how a batch is cut does not change the gradient; see token_budget"),
    "lr_scheduler_type": To("schedule", "constant, linear or cosine; constant_with_warmup is constant with warmup"),
    "lr_scheduler_kwargs": Not("the three schedules have no settings"),
    "warmup_steps": To("warmup", "below 1 a share of the steps, as ours; a number of steps depends on the data: divide it by the steps"),
    "warmup_ratio": To("warmup"),
    "weight_decay": To("weight_decay"),
    "max_grad_norm": To("max_grad_norm", "0 is null"),
    "seed": To("seed", "another order of the data all the same"),
    "data_seed": Not("one seed for all"),
    "max_length": To("max_tokens", "nothing is cut: oldest turns leave, else the example is left out and counted"),
    "optim": Not("AdamW; on a GPU torch picks its fused form", harmless=True),
    "optim_args": Not("AdamW has no further settings here"),
    "adam_beta1": Not("0.9"),
    "adam_beta2": Not("0.999"),
    "adam_epsilon": Not("1e-8 (1e-5 for reward models)"),
    "label_smoothing_factor": Not("of classification"),
    "bf16": MEASURED,
    "fp16": Not("bfloat16 on a GPU that has it, else float32"),
    "tf32": MEASURED,
    "use_cpu": MEASURED,
    "dtype": MEASURED,
    "attn_implementation": MEASURED,
    "gradient_checkpointing": To("gradient_checkpointing", "left out: as memory asks for it (TRL's own default is true)"),
    "gradient_checkpointing_kwargs": Not("set token_budget lower to save memory", harmless=True),
    "activation_checkpointing": Not("set token_budget lower to save memory", harmless=True),
    "activation_offloading": OFFLOADING,
    "auto_find_batch_size": Not("token_budget", harmless=True),
    "torch_compile": Not("not compiled"),
    "use_liger_kernel": Not("log-probs are chunked here always", harmless=True),
    "liger_kernel_config": Not("log-probs are chunked here always", harmless=True),
    "neftune_noise_alpha": To("neftune_alpha", "of preftune train sft"),
    "pad_to_multiple_of": PADDING,
    "padding_free": PADDING,
    "train_sampling_strategy": Not("a new order each epoch, from the seed"),
    "group_by_length": Not("rows of like length share a micro-batch always", harmless=True),
    "dataloader_drop_last": Not("the last, smaller batch of an epoch is learned too"),
    "dataloader_num_workers": MEASURED,
    "dataloader_pin_memory": MEASURED,
    "dataset_num_proc": MEASURED,
    "remove_unused_columns": MEASURED,
    "eval_strategy": Not("give eval_every, in steps; preftune evaluate measures a finished run"),
    "eval_steps": Not("give eval_every, in steps; the held-out side of the snapshot is measured"),
    "per_device_eval_batch_size": MEASURED,
    "load_best_model_at_end": Not("with eval_every the best weights are kept, else the last"),
    "metric_for_best_model": Not("the held-out loss, with eval_every"),
    "logging_steps": LOGGING,
    "logging_strategy": LOGGING,
    "logging_first_step": LOGGING,
    "log_level": LOGGING,
    "report_to": Not("metrics.jsonl and preftune report; no outside service"),
    "run_name": Not("a run's name is its hash", harmless=True),
    "disable_tqdm": LOGGING,
    "save_strategy": SAVING,
    "save_steps": SAVING,
    "save_total_limit": SAVING,
    "save_only_model": SAVING,
    "resume_from_checkpoint": SAVING,
    "push_to_hub": HUB,
    "hub_model_id": HUB,
    "hub_token": HUB,
    "trust_remote_code": Not("no code from a model's folder is ever run"),
    "model_revision": HUB,
    "model_init_kwargs": Not("no free arguments of the loader"),
    "ddp_find_unused_parameters": SEVERAL,
    "ignore_bias_buffers": SEVERAL,
    "fsdp": SEVERAL,
    "fsdp_config": SEVERAL,
    "deepspeed": SEVERAL,
    "ds3_gather_for_generation": SEVERAL,
    "disable_dropout": DROPOUT,
    "router_aux_loss_coef": PREFERENCE_ONLY,
    "pad_token": Not("the tokenizer's, or the end of turn; masks come from lengths", harmless=True),
    "eos_token": Not("found from the chat template, and proved"),
}
PEFT: dict[str, Rule] = {
    "use_peft": To("adapter", "without it: adapter: null, all weights"),
    "lora_r": To("adapter.rank"),
    "lora_alpha": To("adapter.alpha"),
    "lora_target_modules": To("adapter.modules", 'all-linear is null. Without the flag peft picks, mostly "q_proj" and "v_proj"'),
    "lora_dropout": Not("no dropout in the adapter; TRL's own default is 0.05"),
    "lora_target_parameters": Not("whole linear layers alone"),
    "lora_modules_to_save": Not("a reward model's head is always trained and saved whole; no other module beside an adapter"),
    "lora_task_type": Not("follows from the stage", harmless=True),
    "use_rslora": To("adapter.kind", "rslora"),
    "use_dora": To("adapter.kind", "dora; not with rslora at once"),
    "load_in_8bit": Not("4 bits (qlora), or bfloat16 on a GPU"),
    "load_in_4bit": To("adapter.kind", "qlora, with use_peft"),
    "bnb_4bit_quant_type": Not("the kind qlora has no settings"),
    "bnb_4bit_quant_storage": Not("the kind qlora has no settings"),
    "use_bnb_nested_quant": Not("the kind qlora has no settings"),
}
SFT: dict[str, Rule] = {
    "chat_template_path": To("chat_template", "a Jinja file, or plain"),
    "completion_only_loss": Not("answers alone are learned, always; false has no counterpart"),
    "assistant_only_loss": Not("the last answer is learned; give each turn as an example of its own"),
    "packing": Not("rows are filled up to token_budget without mixing examples", harmless=True),
    "packing_strategy": Not("rows are filled up to token_budget without mixing examples", harmless=True),
    "eval_packing": Not("rows are filled up to token_budget without mixing examples", harmless=True),
    "shuffle_dataset": Not("a new order each epoch, from the seed", harmless=True),
    "truncation_mode": Not("nothing is cut", harmless=True),
    "loss_type": Not("negative log-likelihood (nll) alone"),
    "dataset_text_field": DATASET,
    "dataset_kwargs": DATASET,
}
REWARD: dict[str, Rule] = {
    "chat_template_path": To("chat_template", "a Jinja file, or plain"),
    "center_rewards_coefficient": Not("0.01 always; TRL's own default is none"),
}
DPO: dict[str, Rule] = {
    "loss_type": To(
        "loss",
        "sigmoid → dpo, exo_pair → exo, bco_pair → bco, sigmoid_norm → ln_dpo; hinge, ipo, robust, aot, apo_zero, apo_down alike. "
        "nca_pair, sppo_hard, aot_unpaired, discopop and mixtures but sigmoid + sft: none",
    ),
    "loss_weights": To("nll_weight", "for sigmoid + sft: the ratio of the two"),
    "beta": To("beta"),
    "label_smoothing": To("label_smoothing", "robust and exo; TRL leaves it out of sigmoid without a word, loss: cdpo is that"),
    "ld_alpha": To("alpha", "with loss: ld_dpo"),
    "precompute_ref_log_probs": REFERENCE,
    "precompute_ref_batch_size": REFERENCE,
    "truncation_mode": Not("nothing is cut", harmless=True),
    "f_divergence_type": Not("reverse KL alone"),
    "f_alpha_divergence_coef": Not("reverse KL alone"),
    "use_weighting": LOSS_OPTION,
    "discopop_tau": LOSS_OPTION,
    "sync_ref_model": FOLLOWS,
    "ref_model_mixup_alpha": FOLLOWS,
    "ref_model_sync_steps": FOLLOWS,
}
KTO: dict[str, Rule] = {
    "loss_type": To("loss", "kto alone; apo_zero_unpaired: none"),
    "beta": To("beta"),
    "desirable_weight": Not("weights come from the judgements"),
    "undesirable_weight": Not("weights come from the judgements"),
    "precompute_ref_log_probs": REFERENCE,
    "precompute_ref_batch_size": REFERENCE,
    "sync_ref_model": FOLLOWS,
    "ref_model_mixup_alpha": FOLLOWS,
    "ref_model_sync_steps": FOLLOWS,
}
CPO: dict[str, Rule] = {
    "loss_type": To("loss", "sigmoid → cpo, simpo → simpo; hinge and ipo without a reference, and alphapo: none"),
    "beta": To("beta"),
    "label_smoothing": To("label_smoothing", "with loss: cpo"),
    "cpo_alpha": To("nll_weight"),
    "simpo_gamma": To("gamma"),
    "alpha": Not("AlphaPO: no such loss here"),
    "max_completion_length": Not("max_tokens is for prompt and answer together"),
    "generate_during_eval": Not("preftune evaluate"),
    "is_encoder_decoder": Not("causal models alone"),
}
ORPO: dict[str, Rule] = {
    "beta": To("beta", "the paper's lambda"),
    "max_completion_length": Not("max_tokens is for prompt and answer together"),
    "generate_during_eval": Not("preftune evaluate"),
    "is_encoder_decoder": Not("causal models alone"),
    "padding_value": PADDING,
}
ONLINE: dict[str, Rule] = {
    "gradient_checkpointing": Not("set token_budget lower to save memory", harmless=True),
    "reward_model_name_or_path": To("reward_model", "a run of preftune train reward"),
    "reward_funcs": Not('a Python function goes into rewards, as {function: "file.py:name"}'),
    "num_generations": To("samples_per_prompt"),
    "generation_batch_size": Not("give prompts_per_step"),
    "steps_per_generation": To("minibatches"),
    "num_iterations": To("epochs", "passes over each step's samples"),
    "num_train_epochs": Not("give steps, rounds of sampling and learning"),
    "max_steps": To("steps", "a round of ours is one of TRL's generations"),
    "max_completion_length": To("max_new_tokens"),
    "temperature": To("temperature"),
    "top_p": Not("refused: it biases the log-probs that learning needs"),
    "top_k": Not("refused: it biases the log-probs that learning needs"),
    "min_p": Not("refused: it biases the log-probs that learning needs"),
    "repetition_penalty": Not("refused: it biases the log-probs that learning needs"),
    "beta": To("kl_coef"),
    "epsilon": To("clip_range", "its first number"),
    "epsilon_high": To("clip_range", "its second number"),
    "mask_truncated_completions": Not("no_eos_score: an answer that did not end gets that score"),
    "reward_weights": Not("each entry of rewards has its weight"),
    "num_generations_eval": Not("preftune evaluate"),
    "generation_kwargs": Not("refused: it may bias the log-probs that learning needs"),
    "chat_template_kwargs": Not("a template has no settings here"),
    "cache_implementation": MEASURED,
    "shuffle_dataset": Not("a new order each epoch, from the seed", harmless=True),
    "sync_ref_model": Not("the reference is the start"),
    "ref_model_mixup_alpha": Not("the reference is the start"),
    "ref_model_sync_steps": Not("the reference is the start"),
    "log_completions": Not("every round's samples are in the run's samples.jsonl", harmless=True),
    "log_completions_hub_repo": HUB,
    "log_multimodal": Not("text alone", harmless=True),
    "num_completions_to_print": LOGGING,
    "log_unique_prompts": LOGGING,
    "use_transformers_continuous_batching": VLLM,
    "transformers_continuous_batching_config": VLLM,
    "use_transformers_paged": VLLM,
}
ONLINE |= {
    f"{name}": VLLM
    for name in (
        "use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url vllm_server_host "
        "vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size"
    ).split()
}
GROUP_LOSS = Not("no such part of the loss here")
GRPO: dict[str, Rule] = ONLINE | {
    name: GROUP_LOSS
    for name in (
        "delta multi_objective_aggregation sapo_temperature_neg sapo_temperature_pos "
        "vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min "
        "entropy_coef_max entropy_coef_delta entropy_target off_policy_mask_threshold use_bias_correction_kl cast_lm_head_to_fp32 "
        "vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
        "vllm_importance_sampling_clip_min vllm_importance_sampling_cap"
    ).split()
}
GRPO |= {
    "loss_type": To("variant", "grpo, dr_grpo and dapo alike; others: none"),
    "scale_rewards": To("variant", "grpo and dapo divide by the group's sd, dr_grpo by none; batch: none"),
    "importance_sampling_level": To("variant", "sequence → gspo"),
    "max_tool_calling_iterations": Not("no tools in sampling"),
}
RLOO: dict[str, Rule] = ONLINE | {
    "normalize_advantages": Not("as published, advantages are not normalised over the batch"),
    "reward_clip_range": Not("scores are in standard deviations of the start's own"),
}


@dataclass(frozen=True)
class Command:
    """One of TRL's trainers: our stage, its config, its own flags, and what TRL takes by itself where ours takes another."""

    stage: str
    config: type[Config]
    flags: dict[str, Rule]
    defaults: dict[str, Any]


OFFLINE = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "warmup_steps": 0, "seed": 42, "max_length": 1024}
SAMPLED = {"per_device_train_batch_size": 8, "warmup_steps": 0, "seed": 42, "max_completion_length": 512, "learning_rate": 1e-6}
COMMANDS = {
    "sft": Command("sft", SFTConfig, SFT, OFFLINE | {"learning_rate": 2e-5}),
    "reward": Command("reward", RewardConfig, REWARD, OFFLINE | {"learning_rate": 1e-4}),
    "dpo": Command("dpo", DPOConfig, DPO, OFFLINE | {"learning_rate": 1e-6, "beta": 0.1}),
    "kto": Command("dpo", DPOConfig, KTO, OFFLINE | {"learning_rate": 1e-6, "beta": 0.1, "loss_type": "kto"}),
    "cpo": Command("dpo", DPOConfig, CPO, OFFLINE | {"learning_rate": 1e-6, "beta": 0.1, "loss_type": "sigmoid"}),
    "orpo": Command("dpo", DPOConfig, ORPO, OFFLINE | {"learning_rate": 1e-6, "beta": 0.1}),
    "grpo": Command(
        "grpo", GRPOConfig, GRPO, SAMPLED | {"num_generations": 8, "num_iterations": 1, "beta": 0.0, "epsilon": 0.2, "loss_type": "dapo"}
    ),
    "rloo": Command("rloo", RLOOConfig, RLOO, SAMPLED | {"num_generations": 2, "num_iterations": 1, "beta": 0.05, "epsilon": 0.2}),
}
DPO_LOSSES = {"sigmoid": "dpo", "exo_pair": "exo", "bco_pair": "bco", "sigmoid_norm": "ln_dpo"}
DPO_LOSSES |= {name: name for name in ("hinge", "ipo", "robust", "aot", "apo_zero", "apo_down")}
CPO_LOSSES = {"sigmoid": "cpo", "simpo": "simpo"}
ADAPTER_KINDS = {"load_in_4bit": "qlora", "use_dora": "dora", "use_rslora": "rslora"}
SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}
NEEDED = {"data": "snapshots/…", "model": "base", "reward_model": "runs/…"}


@dataclass
class Turned:
    """Our keys, and a line for each thing that could not be taken over."""

    values: dict[str, Any]
    missing: list[str]


def turn(command: str, flags: dict[str, Any]) -> Turned:
    """Return what TRL's flags (and what it takes by itself) are in ours. Raises ConfigError where the command is unknown."""
    if command not in COMMANDS:
        raise ConfigError(f'"{command}" is none of TRL\'s commands', "the first word", f"Give one of {', '.join(COMMANDS)}.")
    found = COMMANDS[command]
    rules = SHARED | PEFT | found.flags
    given = {name.replace("-", "_"): value for name, value in flags.items()}
    asked = found.defaults | given
    if "warmup_ratio" in given:
        asked.pop("warmup_steps")
    turned = Turned({}, [])
    for name in given:
        rule = rules.get(name)
        if rule is None:
            turned.missing.append(f"{name}: unknown here")
        elif isinstance(rule, Not) and not rule.harmless and given[name] not in (None, False):
            turned.missing.append(f"{name}: {rule.why}")
    for name, value in asked.items():
        rule = rules.get(name)
        if isinstance(rule, To) and "." not in rule.key and rule.key != "adapter":
            _set(turned, command, name, rule.key, value, asked)
    _adapter(turned, asked, command)
    return _known(turned, found)


def _set(turned: Turned, command: str, name: str, key: str, value: Any, asked: dict[str, Any]) -> None:
    match name:
        case "gradient_accumulation_steps":
            return  # with per_device_train_batch_size
        case "per_device_train_batch_size":
            if COMMANDS[command].stage in ("rloo", "grpo"):
                value = max(1, value * asked.get("gradient_accumulation_steps", 1) // asked["num_generations"])
                key = "prompts_per_step"
            else:
                value = value * asked.get("gradient_accumulation_steps", 1)
        case "num_train_epochs" | "warmup_steps" | "warmup_ratio" | "lr_scheduler_type":
            value = _schedule(turned, name, value)
        case "max_grad_norm":
            value = value or None
        case "epsilon":
            value = [value, asked.get("epsilon_high") or value]
        case "loss_type" if command == "grpo":
            value = _variant(turned, asked)
        case "epsilon_high" | "scale_rewards" | "importance_sampling_level":
            return  # with epsilon, and with loss_type
        case "loss_type" | "loss_weights" | "label_smoothing" | "ld_alpha" | "cpo_alpha" | "simpo_gamma":
            return  # below, all at once: they depend on each other
        case "max_length" if value is None:
            value = 1 << 20
    if value is not None or name == "max_grad_norm":
        turned.values[key] = value
    if name == "beta" and COMMANDS[command].stage == "dpo":
        turned.values |= _loss(turned, command, asked)


VARIANTS = {("grpo", "group"): "grpo", ("dr_grpo", "none"): "dr_grpo", ("dapo", "group"): "dapo"}


def _variant(turned: Turned, asked: dict[str, Any]) -> str:
    """Return the variant that TRL's three flags make together; where they make none of ours, the nearest, and say so."""
    loss, level = asked["loss_type"], asked.get("importance_sampling_level", "token")
    scale = {True: "group", False: "none"}.get(asked.get("scale_rewards", "group"), asked.get("scale_rewards", "group"))
    if level == "sequence":
        if (loss, scale) != ("grpo", "group"):
            turned.missing.append(f"loss_type: {loss} with sequence ratios is gspo here, which averages as grpo does and divides by the sd")
        return "gspo"
    if loss == "dapo":
        turned.values["refills"] = 0  # TRL's keeps groups that all scored alike
    if (loss, scale) not in VARIANTS:
        turned.missing.append(f"loss_type: {loss} with scale_rewards {scale} has no counterpart")
    return VARIANTS.get((loss, scale), loss if loss in ("grpo", "dr_grpo", "dapo") else "grpo")


def _schedule(turned: Turned, name: str, value: Any) -> Any:
    if name == "num_train_epochs":
        if value != int(value):
            turned.missing.append(f"num_train_epochs: {value} is rounded up; a run is whole passes over the data")
        return -int(-value // 1)
    if name == "lr_scheduler_type":
        if value not in SCHEDULES:
            turned.missing.append(f"lr_scheduler_type: {value} is none of {', '.join(SCHEDULES)}")
        return SCHEDULES.get(value)
    if value >= 1:
        turned.missing.append(f"warmup_steps: {value} steps; ours is a share, so set warmup to {value} divided by the run's steps")
        return None
    return float(value)


def _loss(turned: Turned, command: str, asked: dict[str, Any]) -> dict[str, Any]:
    match command:
        case "orpo":
            return {"loss": "orpo"}
        case "kto":
            if asked["loss_type"] not in ("kto", ["kto"]):
                turned.missing.append(f"loss_type: {asked['loss_type']} has no counterpart")
            return {"loss": "kto"}
        case "cpo":
            return _cpo_loss(turned, asked)
    kinds = asked.get("loss_type", ["sigmoid"])
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    weights = asked.get("loss_weights") or [1.0] * len(kinds)
    mixed = dict(zip(kinds, weights, strict=False))
    if mixed.keys() == {"sigmoid", "sft"} and mixed["sigmoid"]:
        return {"loss": "rpo", "nll_weight": mixed["sft"] / mixed["sigmoid"]}
    if len(kinds) > 1 or kinds[0] not in DPO_LOSSES:
        turned.missing.append(f"loss_type: {' + '.join(kinds)} has no counterpart, so this is plain DPO")
        return {}
    loss = DPO_LOSSES[kinds[0]]
    smoothing, alpha = asked.get("label_smoothing", 0.0), asked.get("ld_alpha")
    result: dict[str, Any] = {} if loss == "dpo" else {"loss": loss}
    if loss in ("robust", "exo"):
        result["label_smoothing"] = smoothing
    elif smoothing:
        turned.missing.append(f"label_smoothing: TRL leaves it out of {kinds[0]}, so it is left out; loss: cdpo would take it")
    if alpha is not None and loss == "dpo":
        result |= {"loss": "ld_dpo", "alpha": alpha}
    elif alpha is not None:
        turned.missing.append(f"ld_alpha: only with DPO's own loss, not with {loss}")
    return result


def _cpo_loss(turned: Turned, asked: dict[str, Any]) -> dict[str, Any]:
    kind = asked["loss_type"]
    if kind not in CPO_LOSSES:
        turned.missing.append(f"loss_type: {kind} has no counterpart, so this is plain CPO")
    loss = CPO_LOSSES.get(kind, "cpo")
    result = {"loss": loss, "nll_weight": asked.get("cpo_alpha", 1.0)}
    if loss == "simpo":
        return result | {"gamma": asked.get("simpo_gamma", 0.5)}
    return result | ({"label_smoothing": asked["label_smoothing"]} if asked.get("label_smoothing") else {})


def _adapter(turned: Turned, asked: dict[str, Any], command: str) -> None:
    kinds = [kind for flag, kind in ADAPTER_KINDS.items() if asked.get(flag)]
    if not asked.get("use_peft"):
        turned.values["adapter"] = None
        if kinds:
            turned.missing.append(f"{kinds[0]}: only with an adapter (use_peft), so all weights are trained as they are")
        return
    if len(kinds) > 1:
        turned.missing.append(f"{' + '.join(kinds)}: an adapter is of one kind, so this is {kinds[0]}")
    modules = asked.get("lora_target_modules")
    modules = [modules] if isinstance(modules, str) else modules
    if modules is None:
        turned.missing.append('lora_target_modules: not set, so peft picks (mostly "q_proj" and "v_proj"); this adapts all linear layers')
    if "lora_dropout" not in asked:
        turned.missing.append("lora_dropout: not set, so TRL takes 0.05; there is none here")
    kind = {"kind": kinds[0]} if kinds else {}
    turned.values["adapter"] = kind | {"rank": asked.get("lora_r", 16), "alpha": float(asked.get("lora_alpha", 32))}
    if modules is not None and modules != ["all-linear"]:
        turned.values["adapter"]["modules"] = list(modules)


def _known(turned: Turned, found: Command) -> Turned:
    """Return the keys that this version's stage has, checked as it checks them; what it has not is told."""
    fields = found.config.model_fields
    for key in [k for k in turned.values if k not in fields]:
        turned.missing.append(f"{key}: {found.stage} has no such key")
        del turned.values[key]
    needed = {key: value for key, value in NEEDED.items() if key in fields and key not in turned.values}
    check_config(found.config, needed | turned.values, where="the TRL config", stage=found.stage)
    return turned


def read_flags(words: Sequence[str]) -> dict[str, Any]:
    """Return TRL's flags from a command line, those of its --config file first. Raises ConfigError where that cannot be read."""
    flags: dict[str, Any] = {}
    place = 0
    while place < len(words):
        name, equals, value = words[place].partition("=")
        if not name.startswith("--"):
            raise ConfigError(f'"{words[place]}" belongs to no flag', "the command line", "Write --flag value.")
        place += 1
        values = [value] if equals else []
        while not equals and place < len(words) and not words[place].startswith("--"):
            values.append(words[place])
            place += 1
        read = [_scalar(v) for v in values]
        flags[name[2:].replace("-", "_")] = True if not read else read[0] if len(read) == 1 else read
    file = flags.pop("config", None)
    return (_read_file(Path(str(file))) if file is not None else {}) | flags


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("there is no such file", str(path), "Give TRL's YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"this is not YAML ({' '.join(str(error).split())})", str(path), "Mend the line named.") from error
    if not isinstance(values, dict):
        raise ConfigError("the file must hold key: value lines", str(path), "Give TRL's YAML file.")
    return as_read(values)


def as_read(values: dict[str, Any]) -> dict[str, Any]:
    """Return a TRL file's values as TRL reads them: 1e-6 is a number, and `env` is no flag."""
    return {key: _scalar(value) if isinstance(value, str) else value for key, value in values.items() if key != "env"}


def _scalar(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)  # YAML 1.1 reads 1e-5 as text
    except (ValueError, yaml.YAMLError):
        return text


def as_yaml(values: dict[str, Any]) -> str:
    """Return our keys as a YAML file."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def tables() -> str:
    """Return the Markdown tables of docs/moving-from-trl.md."""
    parts = [("All trainers", SHARED), ("PEFT and quantisation", PEFT), ("SFTConfig", SFT), ("RewardConfig", REWARD), ("DPOConfig", DPO)]
    parts += [("KTOConfig", KTO), ("CPOConfig", CPO), ("ORPOConfig", ORPO), ("GRPOConfig", GRPO), ("RLOOConfig", RLOO)]
    lines: list[str] = []
    for title, rules in parts:
        lines += [f"## {title}", "| TRL | preftune | to know |", "|---|---|---|"]
        for name, rule in rules.items():
            lines.append(f"| `{name}` | `{rule.key}` | {rule.note} |" if isinstance(rule, To) else f"| `{name}` | – | {rule.why} |")
        lines.append("")
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    if list(words) == ["--tables"]:
        print(tables(), end="")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    try:
        turned = turn(words[0], read_flags(words[1:]))
    except PreftuneError as error:
        print(error, file=sys.stderr)
        return 2
    print(as_yaml(turned.values), end="")
    for line in turned.missing:
        print(f"not taken over: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
