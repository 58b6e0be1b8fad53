"""scripts/from_trl.py: a TRL config becomes ours, and what it cannot take over is said."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from preftune.config import load_config
from preftune.errors import ConfigError
from preftune.stages.group import GRPOConfig, RLOOConfig
from preftune.stages.preference_config import DPOConfig
from preftune.stages.reward import RewardConfig
from preftune.stages.sft import SFTConfig

ROOT = Path(__file__).parents[1]
PLACES = ("data=snapshots/1", "model=base")

# The fields of TRL 1.16's own config classes, without those of transformers' TrainingArguments:
#   python -c "import dataclasses, trl; print([f.name for f in dataclasses.fields(trl.DPOConfig)])", and so on; PEFT: trl.ModelConfig.
FIELDS = {
    "dpo": "learning_rate model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout dataset_num_proc max_length "
    "truncation_mode padding_free pad_to_multiple_of precompute_ref_log_probs precompute_ref_batch_size loss_type loss_weights ld_alpha "
    "f_divergence_type f_alpha_divergence_coef label_smoothing beta use_weighting discopop_tau activation_offloading sync_ref_model "
    "ref_model_mixup_alpha ref_model_sync_steps pad_token",
    "reward": "learning_rate model_init_kwargs trust_remote_code chat_template_path disable_dropout dataset_num_proc eos_token max_length "
    "pad_to_multiple_of center_rewards_coefficient activation_offloading pad_token",
    "sft": "learning_rate model_init_kwargs trust_remote_code router_aux_loss_coef chat_template_path dataset_text_field dataset_kwargs "
    "dataset_num_proc eos_token max_length truncation_mode shuffle_dataset packing packing_strategy padding_free pad_to_multiple_of "
    "eval_packing completion_only_loss assistant_only_loss loss_type activation_offloading pad_token",
    "kto": "learning_rate train_sampling_strategy model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout "
    "dataset_num_proc max_length pad_to_multiple_of precompute_ref_log_probs precompute_ref_batch_size loss_type beta desirable_weight "
    "undesirable_weight activation_offloading sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
    "cpo": "learning_rate max_length max_completion_length beta label_smoothing loss_type disable_dropout cpo_alpha simpo_gamma alpha "
    "generate_during_eval is_encoder_decoder model_init_kwargs trust_remote_code dataset_num_proc",
    "orpo": "learning_rate max_length max_completion_length beta disable_dropout padding_value generate_during_eval is_encoder_decoder "
    "model_init_kwargs trust_remote_code dataset_num_proc",
    "rloo": "learning_rate model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout remove_unused_columns num_generations "
    "num_generations_eval max_completion_length ds3_gather_for_generation shuffle_dataset pad_to_multiple_of generation_batch_size "
    "steps_per_generation temperature top_p top_k min_p generation_kwargs chat_template_kwargs repetition_penalty cache_implementation "
    "use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url vllm_server_host "
    "vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size beta "
    "num_iterations epsilon epsilon_high reward_weights normalize_advantages reward_clip_range mask_truncated_completions sync_ref_model "
    "ref_model_mixup_alpha ref_model_sync_steps log_completions log_multimodal num_completions_to_print log_unique_prompts "
    "use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged",
    "peft": "model_name_or_path model_revision dtype attn_implementation use_peft lora_r lora_alpha lora_dropout lora_target_modules "
    "lora_target_parameters lora_modules_to_save lora_task_type use_rslora use_dora load_in_8bit load_in_4bit bnb_4bit_quant_type "
    "use_bnb_nested_quant bnb_4bit_quant_storage",
}
FIELDS["grpo"] = (
    FIELDS["rloo"].replace(" normalize_advantages reward_clip_range", "") + " cast_lm_head_to_fp32 delta sapo_temperature_neg "
    "sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level multi_objective_aggregation "
    "scale_rewards loss_type top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta "
    "entropy_target max_tool_calling_iterations vllm_importance_sampling_correction vllm_importance_sampling_mode "
    "vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min off_policy_mask_threshold use_bias_correction_kl "
    "log_completions_hub_repo vllm_importance_sampling_cap"
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("from_trl", ROOT / "scripts" / "from_trl.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["from_trl"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_flag_of_the_peers_configs_is_answered(script: ModuleType) -> None:
    for command, found in script.COMMANDS.items():
        known = {**script.SHARED, **script.PEFT, **found.flags}
        assert set(f"{FIELDS[command]} {FIELDS['peft']}".split()) <= known.keys(), command


def test_every_key_that_a_flag_is_sent_to_is_one_of_ours(script: ModuleType) -> None:
    fields = {
        "sft": SFTConfig.model_fields,
        "reward": RewardConfig.model_fields,
        "dpo": DPOConfig.model_fields,
        "rloo": RLOOConfig.model_fields,
        "grpo": GRPOConfig.model_fields,
    }
    for command, found in script.COMMANDS.items():
        sent = {rule.key for rule in found.flags.values() if isinstance(rule, script.To)}
        assert sent <= fields[found.stage].keys(), command


def test_a_dpo_file_becomes_ours(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "trl.yaml"
    file.write_text(
        "model_name_or_path: base\nlearning_rate: 5e-7\nnum_train_epochs: 2\nper_device_train_batch_size: 4\n"
        "gradient_accumulation_steps: 8\nbeta: 0.05\nmax_length: 512\nlr_scheduler_type: cosine\nwarmup_steps: 0.1\nseed: 7\n"
        "use_peft: true\nlora_r: 8\nlora_alpha: 16\nlora_dropout: 0.0\nlora_target_modules: [q_proj, v_proj]\n",
        encoding="utf-8",
    )
    turned = script.turn("dpo", script.read_flags(["--config", str(file)]))
    assert turned.values == {
        "model": "base",
        "lr": 5e-7,
        "epochs": 2,
        "batch_size": 32,
        "beta": 0.05,
        "max_tokens": 512,
        "schedule": "cosine",
        "warmup": 0.1,
        "seed": 7,
        "adapter": {"rank": 8, "alpha": 16.0, "modules": ["q_proj", "v_proj"]},
    }
    assert turned.missing == []


def test_what_is_printed_is_a_config_that_the_stage_takes(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["dpo", "--model_name_or_path", "base", "--use_peft", "--lora_target_modules", "all-linear"]) == 0
    ours = tmp_path / "ours.yaml"
    ours.write_text(capsys.readouterr().out, encoding="utf-8")
    config = load_config(DPOConfig, ours, PLACES)
    assert config.adapter is not None
    assert (config.adapter.rank, config.adapter.modules) == (16, None)


def test_what_trl_takes_by_itself_is_written_out(script: ModuleType) -> None:
    values = script.turn("reward", {}).values
    expected = {"lr": 1e-4, "epochs": 3, "batch_size": 8, "warmup": 0.0, "seed": 42, "max_tokens": 1024, "adapter": None}
    assert values == expected


def test_the_command_line_wins_over_the_file(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "trl.yaml"
    file.write_text("beta: 0.3\nlearning_rate: 1.0e-6\n", encoding="utf-8")
    flags = script.read_flags(["--beta=0.2", "--config", str(file), "--use_peft", "--lora_target_modules", "q_proj", "k_proj"])
    assert flags == {"beta": 0.2, "learning_rate": 1e-6, "use_peft": True, "lora_target_modules": ["q_proj", "k_proj"]}


@pytest.mark.parametrize(
    ("command", "flags", "expected"),
    [
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.5, 1.0]}, {"loss": "rpo", "nll_weight": 2.0}),
        ("dpo", {"loss_type": "robust", "label_smoothing": 0.1}, {"loss": "robust", "label_smoothing": 0.1}),
        ("dpo", {"loss_type": ["exo_pair"], "label_smoothing": 1e-3}, {"loss": "exo", "label_smoothing": 1e-3}),
        ("dpo", {"ld_alpha": 0.3}, {"loss": "ld_dpo", "alpha": 0.3}),
        ("cpo", {}, {"loss": "cpo", "nll_weight": 1.0}),
        ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0}, {"loss": "simpo", "nll_weight": 0.0, "gamma": 0.5}),
        ("orpo", {"beta": 0.25}, {"loss": "orpo", "beta": 0.25}),
    ],
)
def test_a_loss_comes_with_its_numbers(script: ModuleType, command: str, flags: dict[str, object], expected: dict[str, object]) -> None:
    turned = script.turn(command, flags)
    assert {key: turned.values[key] for key in expected} == expected
    assert turned.missing == []


def test_flags_without_a_counterpart_are_listed_with_the_reason(script: ModuleType) -> None:
    flags = {"sync_ref_model": True, "use_weighting": False, "logging_steps": 5, "no_such_flag": 1, "warmup_steps": 100}
    missing = script.turn("dpo", flags).missing
    assert [line.partition(":")[0] for line in missing] == ["sync_ref_model", "no_such_flag", "warmup_steps"]
    assert "100 divided by the run's steps" in missing[-1]


def test_what_trl_leaves_out_in_silence_is_said(script: ModuleType) -> None:
    turned = script.turn("dpo", {"label_smoothing": 0.1})
    assert "label_smoothing" not in turned.values
    assert any("cdpo" in line for line in turned.missing)


def test_peft_without_its_target_modules_is_said(script: ModuleType) -> None:
    missing = script.turn("sft", {"use_peft": True}).missing
    assert [line.partition(":")[0] for line in missing] == ["lora_target_modules", "lora_dropout"]


def test_an_adapter_of_another_kind_keeps_it(script: ModuleType) -> None:
    flags = {"use_peft": True, "use_dora": True, "lora_target_modules": "all-linear", "lora_dropout": 0.0}
    assert script.turn("sft", flags).values["adapter"] == {"kind": "dora", "rank": 16, "alpha": 32.0}
    both = script.turn("sft", {**flags, "use_rslora": True})
    assert both.missing == ["dora + rslora: an adapter is of one kind, so this is dora"]


def test_grpo_becomes_grpo_with_its_loss_as_a_variant(script: ModuleType) -> None:
    turned = script.turn("grpo", {"num_generations": 4, "max_completion_length": 64, "epsilon": 0.1, "epsilon_high": 0.3, "top_k": 50})
    assert {k: turned.values[k] for k in ("samples_per_prompt", "max_new_tokens", "clip_range", "prompts_per_step")} == {
        "samples_per_prompt": 4,
        "max_new_tokens": 64,
        "clip_range": [0.1, 0.3],
        "prompts_per_step": 2,
    }
    assert {k: turned.values[k] for k in ("variant", "refills", "kl_coef")} == {"variant": "dapo", "refills": 0, "kl_coef": 0.0}
    for flags, variant in (
        ({"loss_type": "grpo"}, "grpo"),
        ({"loss_type": "dr_grpo", "scale_rewards": False}, "dr_grpo"),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, "gspo"),
    ):
        found = script.turn("grpo", flags)
        assert (found.values["variant"], [line for line in found.missing if "loss_type" in line]) == (variant, [])
    assert any("dapo with scale_rewards batch" in line for line in script.turn("grpo", {"scale_rewards": "batch"}).missing)
    assert any("bnpo with scale_rewards group has no counterpart" in line for line in script.turn("grpo", {"loss_type": "bnpo"}).missing)
    assert script.turn("rloo", {}).values["clip_range"] == [0.2, 0.2]
    assert any(line.startswith("top_k") for line in turned.missing)


def test_an_unknown_command_and_a_missing_file_are_sentences(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Give one of sft, reward, dpo"):
        script.turn("ppo", {})
    with pytest.raises(ConfigError, match="there is no such file"):
        script.read_flags(["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="belongs to no flag"):
        script.read_flags(["beta", "0.1"])


def test_the_page_holds_the_tables_of_the_script(script: ModuleType) -> None:
    page = (ROOT / "docs" / "moving-from-trl.md").read_text(encoding="utf-8")
    assert script.tables() in page, "python scripts/from_trl.py --tables prints them anew"


def test_the_example_of_the_page_gives_what_the_page_shows(script: ModuleType) -> None:
    page = (ROOT / "docs" / "moving-from-trl.md").read_text(encoding="utf-8")
    before = page.split("```yaml\n")[1].split("```")[0]
    after = page.split("```yaml\n")[2].split("```")[0]
    assert script.turn("dpo", script.as_read(yaml.safe_load(before))).values == yaml.safe_load(after)
