"""Plans for machines that are not here: sizes as published, laws that must hold, and what a model here really keeps and computes."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from preftune.cli import app
from preftune.data.batches import Area, Group, collate
from preftune.errors import ConfigError
from preftune.models.load import batch_logprobs, load_causal_lm
from preftune.parallel.one_machine import PLACE_BYTES
from preftune.training.cluster import GIB, Machine, Work, cluster_plan, flops, kept_a_token, memory, seconds
from preftune.training.hardware import GPUS, SHAPES, cluster_of, shape_of
from preftune.training.measure import kept_for_backward
from preftune.training.plan import _Sizes

H100 = GPUS["H100"]
WHOLE = Work("sft", 20_000, rank=None)


@pytest.mark.parametrize(("name", "billions"), [("1B", 1.236), ("8B", 8.030), ("70B", 70.554)])
def test_a_named_size_has_the_published_number_of_weights(name: str, billions: float) -> None:
    assert SHAPES[name].parameters / 1e9 == pytest.approx(billions, rel=1e-3)


def test_a_model_of_a_folder_is_sized_as_it_is(tiny_model_folder: Path) -> None:
    shape, model = shape_of(str(tiny_model_folder)), load_causal_lm(tiny_model_folder)
    norms = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert shape.parameters == sum(p.numel() for p in model.parameters()) - norms
    area = Area((40, 40, 25))
    assert flops(shape, area.tokens, area.squares, 30) == pytest.approx(_Sizes.of(model).flops(area, 30), rel=0.01)  # norms apart


def test_a_token_keeps_for_backward_what_is_said(tiny_model_folder: Path) -> None:
    shape, model = shape_of(str(tiny_model_folder)), load_causal_lm(tiny_model_folder, trained_whole=True)
    groups = [Group(tuple(range(10, 40)), (tuple(range(40, 72)),), n) for n in range(4)]
    kept = kept_for_backward(lambda: batch_logprobs(model, collate(groups, 0))[0].sum(), model)
    machine = Machine(H100, 1, number=4, lean=True)
    assert kept / (4 * 62) == pytest.approx(kept_a_token(shape, machine, recompute=False), rel=0.35)


def test_training_all_weights_takes_six_operations_a_weight_and_token() -> None:
    shape = SHAPES["8B"]
    work = replace(WHOLE, prompt=1, answer=40, recompute=False)  # rows so short that attention is next to nothing
    computed = seconds(shape, work, Machine(H100, 8))["computing"] * 8 * 0.35 * H100.bf16
    embeddings = shape.head
    assert computed == pytest.approx(6 * (shape.parameters - embeddings) * 64 * 41, rel=0.01)


def test_weights_gradients_and_moments_are_sixteen_bytes_a_weight_over_all_gpus() -> None:
    for count in (2, 8, 64):
        held = memory(SHAPES["8B"], WHOLE, Machine(H100, count))
        assert held["weights, gradients, moments"] == pytest.approx(16 * 8.03e9 / count, rel=1e-3)


def test_weights_that_processes_share_count_in_each_and_are_not_gathered() -> None:
    shape, apart = SHAPES["8B"], Machine(H100, 2, number=4)
    for count in (2, 4):
        shared = replace(apart, count=count, shared=True)
        held = memory(shape, WHOLE, shared)
        assert held["weights, gradients, moments"] == pytest.approx(4 * 8.03e9 + 12 * 8.03e9 / count, rel=1e-3)
        assert held["gathered"] == 4 * (shape.layer + shape.outside) + count * 2 * PLACE_BYTES  # of the gradients alone
        moved = seconds(shape, WHOLE, shared)["gathering"] * shared.link * 0.7
        assert moved == pytest.approx(4 * shape.parameters * (count - 1) / count)
    one = replace(apart, count=1)
    assert cluster_plan(shape, WHOLE, replace(one, shared=True)) == cluster_plan(shape, WHOLE, one)
    sampled = memory(shape, Work("rloo", 1000), replace(apart, shared=True))
    assert sampled["weights, gradients, moments"] > 4 * shape.parameters
    assert sampled["gathered"] == 2 * 2 * PLACE_BYTES  # no second copy to sample from


def test_a_frozen_base_is_two_bytes_a_weight_and_the_adapter_small() -> None:
    held = memory(SHAPES["70B"], Work("dpo", 1000), Machine(H100, 8))["weights, gradients, moments"]
    # LoRA of rank 32 on every linear layer of 70B: 414 million weights, 16 bytes each.
    assert held == pytest.approx(2 * 70.554e9 / 8 + 16 * 414e6, rel=0.01)


def test_more_gpus_take_less_time_and_as_many_gpu_hours() -> None:
    plans = [cluster_plan(SHAPES["8B"], WHOLE, Machine(H100, count), price=2.0) for count in (2, 4, 8)]
    assert [p.hours for p in plans] == sorted((p.hours for p in plans), reverse=True)
    assert plans[2].cost == pytest.approx(plans[0].cost, rel=0.05)
    assert plans[2].cost == pytest.approx(plans[2].hours * 8 * 2.0)


def test_between_machines_weights_take_longer_to_gather() -> None:
    within, between = (seconds(SHAPES["8B"], WHOLE, Machine(H100, count))["gathering"] for count in (8, 16))
    assert between > 3 * within


def test_samples_are_drawn_no_faster_than_weights_are_read() -> None:
    work = Work("rloo", 1000, answer=100)
    drawn = seconds(SHAPES["8B"], work, Machine(H100, 8))["sampling"]
    assert drawn > 100 * 2 * 8.03e9 / H100.bandwidth


def test_what_does_not_fit_says_so_and_what_would_help() -> None:
    plan = cluster_plan(SHAPES["70B"], WHOLE, Machine(H100, 8))
    assert not plan.fits
    assert "This will not fit. Take more GPUs, or train an adapter" in plan.lines()[-1]
    assert cluster_plan(SHAPES["70B"], WHOLE, Machine(H100, 64)).fits
    sampled = cluster_plan(SHAPES["70B"], Work("grpo", 1000), Machine(H100, 8))
    assert not sampled.fits
    assert "Sample elsewhere" in sampled.advice
    assert sampled.memory["gathered"] * GIB == pytest.approx(2 * 70.554e9, rel=1e-3)


def test_a_cluster_is_a_number_and_a_kind() -> None:
    assert cluster_of("8xH100") == (8, H100) == cluster_of("8 × h100")
    for wrong in ("H100", "0xH100", "8xH1000", "-1xH100", ""):
        with pytest.raises(ConfigError, match=r"is no cluster.*as in 8xH100; known are A100-80, H100"):
            cluster_of(wrong)


def test_a_model_that_cannot_be_sized_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'there is no model "7B".*Give 1B, 8B, 70B, or the folder'):
        shape_of("7B")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(ConfigError, match=r"config.json: the sizes cannot be read \(KeyError\('num_attention_heads'\)\)"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="the sizes cannot be read"):
        shape_of(str(tmp_path))


def test_the_tables_and_the_commands_of_the_page_say_what_the_plan_says_today() -> None:
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("cluster_plan_of_the_page", root / "benchmarks" / "cluster_plan.py")
    assert spec is not None
    assert spec.loader is not None
    printed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(printed)
    page = printed.PAGE.read_text(encoding="utf-8")
    table = page.partition(printed.BEGIN)[2].partition(printed.END)[0]
    assert table == printed.table(), "python benchmarks/cluster_plan.py --write"
    for size, work, gpus, gib, hours in (("8B", WHOLE, 4, 43, 0.6), ("70B", Work("dpo", 20_000), 4, 61, 8.1)):  # two cells by hand
        plan = cluster_plan(SHAPES[size], work, Machine(H100, gpus))
        assert (round(plan.memory_gib), round(plan.hours * gpus, 1)) == (gib, hours)
        assert f"{gpus} × H100, {gib} GiB each, {hours} GPU hours" in table
    first = next(line for line in page.splitlines() if line.startswith("preftune plan dpo --model 70B"))
    assert first.split()[1:] == ["plan", "dpo", "--model", "70B", "--cluster", "8xH100", "--examples", "50000"]
    told = CliRunner().invoke(app, first.split()[1:])
    assert told.exit_code == 0, told.output
    assert "dpo of 70B" in told.output or "dpo of Llama 3.1 70B" in told.output
