"""Loading says what is missing; shared-prompt rows, padding and company are nothing to what a model says of an answer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from preftune.data.batches import Group, collate
from preftune.errors import ModelError
from preftune.losses.logprobs import logprobs_from_logits
from preftune.losses.reduce import sequence_sum
from preftune.manifest import begin, hash_folder
from preftune.models.adapter import Adapter, adapter_off, add_adapter
from preftune.models.checkpoint import save_model, save_tokenizer
from preftune.models.heads import end_scores, load_reward_model, scalar_head, token_values, with_scalar_head
from preftune.models.load import (
    batch_logprobs,
    fitting_dtype,
    load_causal_lm,
    load_renderer,
    load_tokenizer,
    max_context,
    name_in,
    output_head,
    tokenizer_folder,
    tree_rows_agree,
)
from preftune.records import Message
from preftune.tensors import TokenBatch

FAMILIES = ["llama", "qwen3", "gemma3_text", "mistral", "gpt2", "phi"]
CPU = torch.device("cpu")
PAD = 0


def random_ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


# Longer than the window of 8 tokens that one family's first layer has.
GROUPS = [
    Group(random_ids(13, 1), (random_ids(11, 2), random_ids(17, 3), random_ids(1, 4)), 0),
    Group(random_ids(5, 5), (random_ids(9, 6), random_ids(4, 7)), 1),
]


@pytest.fixture
def model(request, tiny_folder):
    """A fresh model of the family that the test is parametrised with."""
    return load_causal_lm(tiny_folder(getattr(request, "param", "llama")), device=CPU)


every_family = pytest.mark.parametrize("model", FAMILIES, indirect=True)


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def score(model, batch):
    logprobs, _ = batch_logprobs(model, batch)
    return sequence_sum(logprobs, batch.sequence, batch.num_sequences)


@every_family
def test_log_probs_are_those_of_the_whole_models_logits(model):
    batch = collate(GROUPS, PAD, tree=False)
    with torch.no_grad():
        ours, _ = batch_logprobs(model, batch)
        logits = model(batch.ids, attention_mask=batch.attention_mask.long(), position_ids=batch.position_ids).logits
    theirs = logprobs_from_logits(logits, batch.ids, batch.parent, batch.completion_mask, temperature=1.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@every_family
def test_sharing_the_prompt_changes_no_log_prob_and_no_gradient(model):
    signs = torch.tensor([1.0, -1.0, 0.5, 2.0, -0.3])
    sums, slopes = [], []
    for tree in (True, False):
        scores = score(model, collate(GROUPS, PAD, tree=tree))
        (scores * signs).sum().backward()
        sums.append(scores.detach())
        slopes.append(gradients(model))
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-5, atol=1e-5)
    assert slopes[0].keys() == slopes[1].keys()
    scale = max(float(slope.abs().max()) for slope in slopes[1].values())
    for name, slope in slopes[0].items():
        torch.testing.assert_close(slope, slopes[1][name], rtol=1e-5, atol=1e-5 * scale, msg=name)


@every_family
def test_a_beginning_that_is_computed_once_gives_the_same_and_learns_the_same(model):
    begun = random_ids(12, 50)
    groups = [Group((*begun, *g.prompt), g.completions, g.index) for g in GROUPS]
    assert collate(groups, PAD).beginning[:12] == begun
    results = []
    for tree in (True, False):
        scores = score(model, collate(groups, PAD, tree=tree))
        scores.sum().backward()
        results.append((scores.detach(), gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    scale = max(float(slope.abs().max()) for slope in results[1][1].values())
    for name, slope in results[0][1].items():
        torch.testing.assert_close(slope, results[1][1][name], rtol=1e-5, atol=1e-5 * scale, msg=name)


@every_family
def test_what_is_changed_in_one_answer_leaves_the_others_as_they_were(model):
    changed = Group(GROUPS[0].prompt, (random_ids(11, 99), *GROUPS[0].completions[1:]), 0)
    with torch.no_grad():
        before, after = (score(model, collate([group, GROUPS[1]], PAD)) for group in (GROUPS[0], changed))
    assert abs(float(before[0] - after[0])) > 1e-3
    assert torch.equal(before[1:], after[1:])


@every_family
@pytest.mark.parametrize("tree", [True, False])
def test_more_padding_and_other_padding_change_nothing(model, tree):
    longer = Group(random_ids(60, 8), (random_ids(10, 9),), 2)  # a row that pads all others
    with torch.no_grad():
        alone = score(model, collate(GROUPS, PAD, tree=tree))
        padded = score(model, collate([*GROUPS, longer], PAD, tree=tree))[: len(alone)]
        other = score(model, collate([*GROUPS, longer], 7, tree=tree))[: len(alone)]
    # A sum of a hundred nats is kept to 8e-6 in float32, and wider rows are multiplied in another order.
    torch.testing.assert_close(padded, alone, rtol=2e-7, atol=1e-5)
    assert torch.equal(padded, other)


@every_family
def test_the_probe_finds_that_shared_rows_agree(model):
    assert tree_rows_agree(model)


def test_the_probe_finds_a_model_whose_shared_rows_differ(model, monkeypatch):
    plain = TokenBatch.tree_mask  # each answer sees those before it
    monkeypatch.setattr(TokenBatch, "tree_mask", lambda batch, window=None: plain(replace(batch, segment=batch.segment.clamp(max=0))))
    assert not tree_rows_agree(model)


def test_layers_that_look_back_in_an_unknown_way_get_plain_rows(model):
    model.config.layer_types = ["full_attention", "chunked_attention"]
    assert not tree_rows_agree(model)


def test_eager_attention_reads_shared_rows_alike(tiny_folder):
    model = load_causal_lm(tiny_folder("llama"), device=CPU)
    with torch.no_grad():
        fast = score(model, collate(GROUPS, PAD))
        model.set_attn_implementation("eager")
        torch.testing.assert_close(score(model, collate(GROUPS, PAD)), fast, rtol=0, atol=1e-5)


@every_family
def test_the_output_layer_is_found_with_what_belongs_to_it(model):
    head = output_head(model)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.get_output_embeddings()(hidden)
    capped = 30.0 * torch.tanh(plain / 30.0) if model.config.model_type == "gemma3_text" else plain
    torch.testing.assert_close(head.logits(hidden), capped, rtol=0, atol=1e-6)
    assert max_context(model) == 512


@every_family
def test_a_fresh_adapter_changes_nothing_and_one_that_is_off_neither(model):
    batch = collate(GROUPS, PAD)
    with torch.no_grad():
        before = score(model, batch)
        wrapped = add_adapter(model, Adapter(rank=2), seed=0)
        assert torch.equal(score(wrapped, batch), before)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
        assert not torch.allclose(score(wrapped, batch), before, atol=1e-2)
        with adapter_off(wrapped):
            assert torch.equal(score(wrapped, batch), before)


# The scalar head.


@pytest.fixture
def reward_model(model):
    return with_scalar_head(model, seed=3)


@every_family
def test_a_score_is_the_same_alone_padded_and_in_a_shared_row(reward_model):
    alone = [Group(g.prompt, (c,), 0) for g in GROUPS for c in g.completions]
    with torch.no_grad():
        one_by_one = torch.cat([end_scores(reward_model, collate([group], PAD)) for group in alone])
        padded = end_scores(reward_model, collate(alone, PAD))
        shared = end_scores(reward_model, collate(GROUPS, PAD))
    assert one_by_one.std() > 1e-3  # it does tell answers apart
    torch.testing.assert_close(padded, one_by_one, rtol=0, atol=1e-5)
    torch.testing.assert_close(shared, one_by_one, rtol=0, atol=1e-5)


@every_family
def test_the_score_of_an_answer_is_the_head_on_its_last_token(reward_model):
    prompt, completion = GROUPS[0].prompt, GROUPS[0].completions[1]
    with torch.no_grad():
        hidden = reward_model.base_model(torch.tensor([[*prompt, *completion]])).last_hidden_state[0, -1]
        expected = hidden @ scalar_head(reward_model).weight[0]
        scored = end_scores(reward_model, collate([GROUPS[0]], PAD))[1]
    torch.testing.assert_close(scored, expected, rtol=0, atol=1e-5)


def test_padding_that_equals_the_end_token_moves_no_score(reward_model):
    end = 9
    groups = [Group(g.prompt, tuple((*c, end) for c in g.completions), g.index) for g in GROUPS]
    with torch.no_grad():
        same, other = (end_scores(reward_model, collate(groups, pad, tree=False)) for pad in (end, PAD))
    torch.testing.assert_close(same, other, rtol=0, atol=1e-6)


def test_the_critic_speaks_of_the_state_before_each_token(reward_model):
    batch = collate([GROUPS[1]], PAD)
    with torch.no_grad():
        values = token_values(reward_model, batch)
        prompt, completion = GROUPS[1].prompt, GROUPS[1].completions[1]
        hidden = reward_model.base_model(torch.tensor([[*prompt, *completion]])).last_hidden_state[0]
        expected = hidden[len(prompt) - 1 : -1] @ scalar_head(reward_model).weight[0]
    torch.testing.assert_close(values[0][batch.sequence[0] == 1], expected, rtol=0, atol=1e-5)
    assert bool((values[batch.completion_mask.logical_not()] == 0).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_reward_model_scores_the_same_for_us_and_for_plain_transformers(tiny_folder, tmp_path, family):
    from transformers import AutoModelForSequenceClassification

    source = tiny_folder(family)
    renderer = load_renderer(source, "plain" if family == "gpt2" else None)
    reward_model = with_scalar_head(load_causal_lm(source, device=CPU), seed=3)
    save_model(reward_model, renderer, tmp_path / "model")
    group = Group(GROUPS[0].prompt, ((*GROUPS[0].completions[0], renderer.end_id),), 0)
    with torch.no_grad():
        before = end_scores(reward_model, collate([group], PAD))
        ours = end_scores(load_reward_model(tmp_path, device=CPU), collate([group], PAD))
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", local_files_only=True)
        theirs = plain(torch.tensor([[*group.prompt, *group.completions[0]]])).logits
    assert plain.config.num_labels == 1
    torch.testing.assert_close(ours, before, rtol=0, atol=1e-6)
    torch.testing.assert_close(theirs[:, 0], before, rtol=0, atol=1e-6)


def test_the_head_depends_on_the_seed_alone(tiny_folder):
    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.randint(0, 10**6, ()).item())
        return scalar_head(with_scalar_head(load_causal_lm(tiny_folder("llama"), device=CPU), seed=seed)).weight.detach()

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))
    assert 0.5 < float(head(1).std() * 33**0.5) < 1.5  # N(0, 1/√(H+1)) with H = 32


def test_a_model_without_a_scalar_head_is_a_sentence(model):
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no scalar head. Give a folder that preftune train reward has written"):
        end_scores(model, collate(GROUPS, PAD))


# What is missing is said.


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """A copy of the tiny Llama's folder, to be harmed."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "copy"))


@pytest.mark.parametrize("load", [load_causal_lm, load_tokenizer, load_renderer])
def test_a_folder_that_is_not_there_is_a_sentence(tmp_path, load):
    with pytest.raises(
        ModelError, match=r"nowhere: there is no such model. Give a Hugging Face folder, a GGUF file or a run of preftune\."
    ):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("load", [load_causal_lm, load_tokenizer, load_renderer])
def test_a_folder_without_a_config_is_a_sentence(copy, load):
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"copy: this folder holds no config\.json"):
        load(copy)


def test_missing_weights_are_named(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"weights are missing: model\.layers\.1\.mlp\.up_proj\.weight. Give the whole model"):
        load_causal_lm(copy)


def test_a_folder_without_any_weights_is_a_sentence(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the model cannot be loaded .*Is it a causal LM with its weights?"):
        load_causal_lm(copy)


@pytest.mark.parametrize("content", [b"", b"half a file", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_broken_weights_file_is_a_sentence(copy, content):
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"copy: (the model cannot be loaded|weights are missing)"):
        load_causal_lm(copy)


def test_a_config_that_is_no_json_is_a_sentence(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="copy: the model cannot be loaded"):
        load_causal_lm(copy)


def test_a_config_of_an_unknown_kind_of_model_is_a_sentence(copy):
    (copy / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ModelError, match="copy: the model cannot be loaded .*no-such-model"):
        load_causal_lm(copy)


def test_a_missing_tokenizer_is_a_sentence(copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(ModelError, match=r"copy: the tokenizer cannot be loaded .*The folder needs tokenizer\.json"):
        load_tokenizer(copy)


@pytest.mark.parametrize("content", ["", "{", '{"model": {"type": "none such"}}'])
def test_a_broken_tokenizer_is_a_sentence(copy, content):
    (copy / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"copy: the tokenizer cannot be loaded .*The folder needs tokenizer\.json"):
        load_tokenizer(copy)


def test_a_broken_gguf_file_is_a_sentence(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_causal_lm(tmp_path / "model.gguf")


def test_a_missing_head_is_refused_because_its_rewards_would_be_random(copy):
    with pytest.raises(ModelError, match=r"weights are missing: score\.weight; its rewards would be random"):
        load_reward_model(copy)


def test_a_reward_model_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(ModelError, match=r"the reward model cannot be loaded .*Give a run of train reward"):
        load_reward_model(tmp_path)


def test_a_base_model_without_a_template_is_refused_until_plain_is_set(tiny_folder):
    with pytest.raises(ModelError, match='has no chat template.*Set chat_template to "plain"'):
        load_renderer(tiny_folder("gpt2"))
    assert load_renderer(tiny_folder("gpt2"), "plain").prompt_text([Message(role="user", content="Hi")]) == "User: Hi\n\nAssistant: "


# Runs.


def make_run(project: Path, base: str, chat_template: str | None = None, scale: float = 0.2) -> Path:
    config = {"model": base, "chat_template": chat_template, "scale": scale}
    final, work = begin(project / "runs", "sft", {"model": hash_folder(project / base)}, config)
    model = add_adapter(load_causal_lm(project / base, device=CPU), Adapter(rank=2), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, scale, generator=torch.Generator().manual_seed(4))
    model.save_pretrained(work.path / "adapter")
    save_tokenizer(load_renderer(project / base, chat_template), work.path / "adapter")
    return work.finish(final)


@pytest.fixture
def project(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder("llama"), tmp_path / "base")
    shutil.copytree(tiny_folder("gpt2"), tmp_path / "bare")
    return tmp_path


def test_a_run_is_its_adapter_merged_into_its_base_and_a_chain_of_runs_likewise(project):
    first = make_run(project, "base")
    second = make_run(project, name_in(first, project))
    batch = collate(GROUPS, PAD)
    with torch.no_grad():
        base, one, two = (score(load_causal_lm(path, device=CPU), batch) for path in (project / "base", first, second))
        from peft import PeftModel

        unmerged = PeftModel.from_pretrained(load_causal_lm(first, device=CPU), str(second / "adapter")).eval()
        torch.testing.assert_close(score(unmerged, batch), two, rtol=1e-5, atol=1e-4)
    assert (base - one).abs().max() > 0.1
    assert (one - two).abs().max() > 0.1


def test_a_run_speaks_through_the_tokenizer_of_its_base(project):
    run = make_run(project, "base")
    assert tokenizer_folder(run) == project / "base"
    assert load_renderer(run).template == load_renderer(project / "base").template


def test_a_template_set_once_is_carried_down_a_chain_of_runs(project):
    first = make_run(project, "bare", "plain")
    second = make_run(project, name_in(first, project))
    for run in (first, second):
        assert load_renderer(run).prompt_text([Message(role="user", content="Hi")]) == "User: Hi\n\nAssistant: "


def test_a_base_that_is_gone_or_another_is_refused(project):
    run = make_run(project, "base")
    config = json.loads((project / "base" / "config.json").read_text())
    (project / "base" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    with pytest.raises(ModelError, match="base is not the one that it was trained on. Bring the right one back"):
        load_causal_lm(run)
    shutil.rmtree(project / "base")
    with pytest.raises(ModelError, match="base is gone. Bring it back to that place"):
        load_causal_lm(run)


def test_a_project_can_be_moved_with_its_runs(project, tmp_path_factory):
    run = make_run(project, "base")
    batch = collate(GROUPS, PAD)
    with torch.no_grad():
        before = score(load_causal_lm(run, device=CPU), batch)
        moved = Path(shutil.move(project, tmp_path_factory.mktemp("elsewhere") / "project"))
        assert torch.equal(score(load_causal_lm(moved / "runs" / run.name, device=CPU), batch), before)


def test_weights_are_float32_on_the_cpu_and_where_they_are_trained_themselves():
    assert fitting_dtype(CPU, trained_whole=False) == torch.float32
    assert fitting_dtype(torch.device("cuda"), trained_whole=True) == torch.float32
