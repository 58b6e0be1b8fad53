"""A GGUF file says what the folder says, to the last digit in float32 and to the last token; what it cannot say is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from preftune.data.template import Renderer
from preftune.errors import ConfigError, DiskError, ModelError
from preftune.manifest import read_manifest
from preftune.models import gguf_reading
from preftune.models.load import load_causal_lm, load_tokenizer
from preftune.release import folder as folder_module
from preftune.release import gguf_export, gguf_write
from preftune.release.export import release
from preftune.release.folder import write_folder
from preftune.release.gguf_check import check_gguf, load_gguf, tokenizer_of
from preftune.release.gguf_export import kinds_of, measure_before
from preftune.release.gguf_tokens import SPLITS, read_vocabulary
from preftune.release.gguf_write import check_family, write_gguf
from preftune.release.hard_strings import COUNT, hard_strings

PAD = 5  # rows of embeddings that no token has
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def config_of(family: str, rows: int) -> Any:
    import transformers as hf

    match family:
        case "llama":
            rope = {"rope_type": "default", "rope_theta": 1e5}
            return hf.LlamaConfig(vocab_size=rows, **SHAPE, tie_word_embeddings=True, rope_parameters=rope)
        case "llama31":
            return hf.LlamaConfig(vocab_size=rows, **SHAPE, rope_parameters=LLAMA3 | {"rope_theta": 5e5})
        case "mistral":
            return hf.MistralConfig(vocab_size=rows, **SHAPE, head_dim=16, sliding_window=64)
        case "qwen2":
            return hf.Qwen2Config(vocab_size=rows, **SHAPE)
        case "qwen3":
            return hf.Qwen3Config(vocab_size=rows, **SHAPE, head_dim=16, tie_word_embeddings=True)
        case "gemma2":
            return hf.Gemma2Config(vocab_size=rows, **SHAPE, head_dim=16, query_pre_attn_scalar=16, sliding_window=8)
    shape = SHAPE | {"num_hidden_layers": 7}
    return hf.Gemma3TextConfig(vocab_size=rows, **shape, head_dim=16, query_pre_attn_scalar=16, sliding_window=8)


def splitting(tokenizer: Any, name: str) -> Any:
    """Let a byte-level tokenizer split text as one of llama.cpp's names says."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "smollm")]
    if name == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    else:
        rule = next(rule for rule, known in SPLITS.items() if known == name)
        steps.insert(0, pre_tokenizers.Split(Regex(rule), behavior="isolated"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.backend_tokenizer.model.ignore_merges = name != "smollm" and name != "qwen2"
    if name == "qwen2":
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def piece_tokenizer(template: str) -> Any:
    """A tokenizer as SentencePiece makes them: pieces, bytes where none fits, a space before each text."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "\u2581",
        *"abcdefghilmnorstuwxyz.(),:=",
        "\u2581a",
        "er",
        "in",
        "re",
        "on",
        "\u2581t",
        "de",
        "def",
        "\u2581re",
        "tion",
        "ti",
        "\u2581the",
        "he",
    ]
    tokens = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [(p[:i], p[i:]) for p in pieces for i in range(1, len(p)) if p[:i] in vocabulary and p[i:] in vocabulary]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    fast.chat_template = template
    return fast


@dataclass(frozen=True)
class Made:
    folder: Path
    renderer: Renderer
    measured: Any


@pytest.fixture(scope="module")
def make(tmp_path_factory, make_tokenizer):
    """Write a tiny random model of a family as a folder, once."""
    made: dict[str, Made] = {}

    def tokenizer_for(family: str) -> Any:
        match family:
            case "llama":
                return splitting(make_tokenizer("chatml"), "smollm")
            case "llama31":
                return splitting(make_tokenizer("llama3"), "llama-bpe")
            case "mistral":
                return piece_tokenizer(make_tokenizer("mistral").chat_template)
            case "qwen2":
                return splitting(make_tokenizer("chatml"), "qwen2")
        return make_tokenizer("chatml" if family == "qwen3" else "gemma")

    def write(family: str) -> Made:
        if family not in made:
            from transformers import AutoModelForCausalLM

            renderer = Renderer(tokenizer_for(family))
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(config_of(family, len(renderer.tokenizer) + PAD)).eval()
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        parameter.add_(torch.randn_like(parameter) * (0.02 if "norm" in name else 0.08))
            folder = tmp_path_factory.mktemp(family)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(folder_module, "READ_BACK_TOKENS", 4)
                expected = write_folder(model, renderer, folder)
            made[family] = Made(folder, renderer, measure_before(model, renderer, expected))
        return made[family]

    return write


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr(folder_module, "READ_BACK_TOKENS", 4)


def write_and_check(made: Made, path: Path, kind: str) -> dict[str, Any]:
    vocabulary = write_gguf(made.folder, path, kind, renderer=made.renderer, name="tiny")
    return check(made, path, kind, vocabulary)


def check(made: Made, path: Path, kind: str, vocabulary: Any) -> dict[str, Any]:
    measured = made.measured
    return check_gguf(path, kind, made.folder, vocabulary, made.renderer, measured.expected, measured.texts, measured.nll)


def said(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("family", ["llama", "llama31", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_each_family_reads_back_to_the_last_digit_and_token(make, tmp_path, family):
    found = write_and_check(make(family), tmp_path / "model.gguf", "f32")
    assert found["max_logit_diff"] < 1e-4
    assert (found["strings"], found["ids_equal"], found["same_answers"]) == (1000, True, 3)
    assert found["perplexity_ratio"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("kind", "stored"), [("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0"), ("q4_0", "Q4_0")])
def test_each_kind_is_what_it_is_called_and_costs_what_it_may(make, tmp_path, kind, stored):
    found = write_and_check(make("llama"), tmp_path / "model.gguf", kind)
    assert found["weights_error"] < {"f16": 5e-4, "bf16": 3e-3, "q8_0": 0.01, "q4_0": 0.12}[kind]
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors(tmp_path / "model.gguf").items()}
    assert kinds["blk.1.ffn_up.weight"] == stored
    assert {kinds[name] for name in kinds if "norm" in name} == {"F32"}
    assert kinds["token_embd.weight"] == ("Q8_0" if kind == "q4_0" else stored)


def test_a_llamas_rows_are_in_the_order_of_neighbours_and_its_tied_head_is_left_out(make, tmp_path):
    from safetensors.torch import load_file

    made = make("llama")
    write_gguf(made.folder, tmp_path / "model.gguf", "f32", renderer=made.renderer, name="tiny")
    stored, weights = tensors(tmp_path / "model.gguf"), load_file(made.folder / "model.safetensors")
    for ours, theirs, heads in (("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2)):
        rows = weights[f"model.layers.1.self_attn.{ours}.weight"].numpy()
        width = len(rows) // heads
        order = [head * width + half * width // 2 + i for head in range(heads) for i in range(width // 2) for half in (0, 1)]
        assert np.array_equal(stored[f"blk.1.{theirs}.weight"].data, rows[order])
    assert np.array_equal(stored["blk.1.attn_v.weight"].data, weights["model.layers.1.self_attn.v_proj.weight"].numpy())
    assert "output.weight" not in stored
    assert "output.weight" in _names(make("qwen2"), tmp_path)


def _names(made: Made, tmp_path: Path) -> set[str]:
    write_gguf(made.folder, tmp_path / "other.gguf", "f16", renderer=made.renderer, name="tiny")
    return set(tensors(tmp_path / "other.gguf"))


def test_what_the_file_says_of_the_model_and_of_its_tokens(make, tmp_path):
    made, path = make("llama"), tmp_path / "model.gguf"
    write_gguf(made.folder, path, "q8_0", renderer=made.renderer, name="tiny")
    facts, tokens = said(path), made.renderer.tokenizer
    assert (facts["general.architecture"], facts["general.file_type"], facts["general.name"]) == ("llama", 7, "tiny")
    assert facts["llama.rope.freq_base"] == 1e5
    assert facts["tokenizer.ggml.pre"] == "smollm"
    assert facts["tokenizer.chat_template"] == made.renderer.template
    assert facts["tokenizer.ggml.add_bos_token"] is False
    end = tokens.convert_tokens_to_ids("<|im_end|>")
    assert facts["tokenizer.ggml.eos_token_id"] == facts["tokenizer.ggml.eot_token_id"] == end != tokens.eos_token_id
    names, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    assert len(names) == facts["llama.vocab_size"] == len(tokens) + PAD
    assert (names[-1], kinds[-1]) == (f"[PAD{len(names) - 1}]", gguf.TokenType.UNUSED)
    assert kinds[end] == gguf.TokenType.CONTROL


def test_what_is_peculiar_to_a_family(make, tmp_path):
    paths = {}
    for family in ("llama31", "mistral", "gemma3_text"):
        made = make(family)
        paths[family] = tmp_path / f"{family}.gguf"
        write_gguf(made.folder, paths[family], "f32", renderer=made.renderer, name="tiny")
    mistral, gemma = said(paths["mistral"]), said(paths["gemma3_text"])
    assert mistral["llama.context_length"] == 64  # its window: llama.cpp knows none for a Llama
    assert (mistral["tokenizer.ggml.model"], mistral["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    kinds = dict(zip(mistral["tokenizer.ggml.tokens"], mistral["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["<unk>"], kinds["<0x0A>"], kinds["[INST]"], kinds["tion"]) == (2, 6, 3, 1)
    assert (gemma["gemma3.attention.sliding_window"], gemma["gemma3.attention.key_length"]) == (8, 16)
    norm = load_gguf(paths["gemma3_text"]).model.norm.weight.detach().numpy()
    assert np.allclose(tensors(paths["gemma3_text"])["output_norm.weight"].data, norm + 1)

    import transformers as hf

    scaled = hf.LlamaForCausalLM(config_of("llama31", 8)).model.rotary_emb.inv_freq.numpy()
    plain = 5e5 ** (-np.arange(0, 8, 2) / 8)
    assert np.allclose(tensors(paths["llama31"])["rope_freqs.weight"].data, plain / scaled, rtol=1e-5)


def test_a_wrong_order_of_rows_or_a_wrong_name_of_the_splitting_does_not_read_back(make, tmp_path, monkeypatch):
    made, path = make("llama"), tmp_path / "model.gguf"
    vocabulary = write_gguf(made.folder, path, "q4_0", renderer=made.renderer, name="tiny")
    reader = gguf_write._reader
    monkeypatch.setattr(gguf_write, "_reader", lambda weights, key, config: lambda: reader(weights, key, config)()[::-1])
    write_gguf(made.folder, path, "q4_0", renderer=made.renderer, name="tiny")
    with pytest.raises(ModelError, match=r"does not read back as the same: the weights .* are off by"):
        check(made, path, "q4_0", vocabulary)
    monkeypatch.undo()
    monkeypatch.setattr(gguf_write, "read_vocabulary", lambda *arguments: replace(read_vocabulary(*arguments), pre="gpt-2"))
    write_gguf(made.folder, path, "f16", renderer=made.renderer, name="tiny")
    with pytest.raises(ModelError, match="is cut into other tokens"):
        check(made, path, "f16", vocabulary)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gpt2", {}, "no GGUF is written for a model of type gpt2, only for gemma2, gemma3_text, llama, mistral, qwen2, qwen3"),
        ("llama", {"attention_bias": True}, "it has biases in its attention"),
        ("llama", {"hidden_act": "gelu"}, "its activation is gelu"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, r"is scaled \(linear\)"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8}, "its layers look at a window alone"),
        ("gemma2", {"query_pre_attn_scalar": 100}, "its attention is scaled by 100, not by 16"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 7}, "its windowed layers are not all but each sixth"),
    ],
)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(family, changes, words):
    import transformers as hf

    config = hf.GPT2Config() if family == "gpt2" else config_of(family, 320)
    for key, value in changes.items():
        setattr(config, key, value)
    with pytest.raises(ModelError, match=words):
        check_family(config, Path("run"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "its pre-tokenizer is none that llama.cpp has a name for"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "would not change text as its tokenizer does"),
        (lambda t: t["model"].update(ignore_merges=True), "its rule for whole words"),
        (lambda t: t["model"].update(type="Unigram"), "for a tokenizer of kind Unigram"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(make, tmp_path, change, words):
    made = make("llama")
    content = json.loads((made.folder / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=words):
        read_vocabulary(tmp_path, made.renderer, 400)
    with pytest.raises(ModelError, match="there are 313 tokens for 300 embeddings"):
        read_vocabulary(made.folder, made.renderer, 300)


def test_a_full_disk_leaves_no_file(make, tmp_path):
    path = tmp_path / "model.gguf"
    path.symlink_to("/dev/full")
    with pytest.raises(DiskError, match="the disk is full"):
        write_gguf(make("llama").folder, path, "f32", renderer=make("llama").renderer, name="tiny")
    assert list(tmp_path.iterdir()) == []


def test_the_hard_strings_are_the_same_each_time_and_of_every_sort():
    strings = hard_strings(["<|im_end|>"])
    assert strings == hard_strings(["<|im_end|>"])
    assert len(strings) == COUNT
    assert len(set(strings)) > 0.9 * COUNT
    for part in ("<|im_end|>", "  ", "\r\n", "\u200d", "🇩🇪", "def f(", "\u0301", "1234567"):
        assert any(part in text for text in strings), part
    assert max(map(len, strings)) > 3000


def test_the_tokenizer_of_the_file_turns_ids_back_into_text(make, tmp_path):
    made = make("mistral")
    write_gguf(made.folder, tmp_path / "model.gguf", "f16", renderer=made.renderer, name="tiny")
    read = tokenizer_of(tmp_path / "model.gguf")
    for text in itertools.islice(filter(str.strip, hard_strings([])), 40):
        ids = read.encode(text, add_special_tokens=False).ids
        assert read.decode(ids, skip_special_tokens=False) == f" {text}"


def test_a_kind_that_is_not_written_is_a_sentence():
    assert kinds_of(["Q8_0", "f32", "q8_0"]) == ("q8_0", "f32")
    with pytest.raises(ConfigError, match=r'no GGUF of the kind "q4_k_m" is written. Use one of f32, f16, bf16, q8_0, q4_0'):
        kinds_of(["q4_k_m"])


def test_a_release_holds_the_files_the_modelfile_and_what_was_found(project, adapter_run, evaluated):
    folder = release(adapter_run, evaluated(adapter_run), project / "releases", gguf=["f32", "q8_0"])
    names = sorted(path.name for path in (folder / "gguf").iterdir())
    assert names == ["Modelfile", f"base-{folder.name}-f32.gguf", f"base-{folder.name}-q8_0.gguf"]
    found = read_manifest(folder)["gguf"]
    assert found["files"][names[1]]["max_logit_diff"] < 1e-4
    assert found["modelfile"] == "gguf/Modelfile"
    assert f"FROM ./{names[1]}" in (folder / "gguf" / "Modelfile").read_text()
    card = (folder / "README.md").read_text()
    assert f"| `gguf/{names[2]}` | {found['files'][names[2]]['max_logit_diff']:.2g} |" in card
    assert "1,000, all alike" in card
    assert f"  gguf/{names[2]}\n" in (folder / "sha256sums.txt").read_text()
    assert all(path.stat().st_mode & 0o777 == (folder / "config.json").stat().st_mode & 0o777 for path in (folder / "gguf").iterdir())


def test_an_export_that_does_not_read_back_is_not_released(project, adapter_run, evaluated, monkeypatch):
    write = gguf_export.write_gguf

    def write_badly(folder, path, kind, **more):
        vocabulary = write(folder, path, kind, **more)
        with path.open("r+b") as file:
            file.seek(-64, 2)
            file.write(bytes(64))
        return vocabulary

    monkeypatch.setattr(gguf_export, "write_gguf", write_badly)
    with pytest.raises(ModelError, match="does not read back as the same"):
        release(adapter_run, evaluated(adapter_run), project / "releases", gguf=["f32"])
    assert list((project / "releases").iterdir()) == []


def test_a_template_that_ollama_would_not_know_is_told_and_the_rest_is_released(project, make_adapter_run, evaluated):
    run = make_adapter_run(chat_template="plain")
    folder = release(run, evaluated(run), project / "releases", gguf=["f16"])
    assert not (folder / "gguf" / "Modelfile").exists()
    assert "no Modelfile is written: the chat template is none that Ollama would know" in (folder / "README.md").read_text()


def test_loading_reads_the_file_once_and_what_it_reads_is_what_transformers_does(make, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made, path = make("llama"), tmp_path / "model.gguf"
    write_gguf(made.folder, path, "q8_0", renderer=made.renderer, name="tiny")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).state_dict()
    tokens = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    opened: list[str] = []
    read = gguf_reading.PlainReader.__init__

    def counted(self, *words, **more):
        opened.append("opened")
        read(self, *words, **more)

    monkeypatch.setattr(gguf_reading.PlainReader, "__init__", counted)
    by_itself = gguf.GGUFReader, gguf.get_tensor_name_map
    loaded = load_causal_lm(path)
    assert len(opened) == 1, "once for config and weights"
    weights = loaded.state_dict()
    assert weights.keys() == plain.keys()
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    assert not loaded.is_quantized
    assert loaded.lm_head.weight.dtype == torch.float32
    assert load_tokenizer(path).get_vocab() == tokens.get_vocab()
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == by_itself, "others find the library as it was"
