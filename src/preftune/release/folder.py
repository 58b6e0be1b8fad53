"""The Hugging Face folder of a release: written so that every common runtime loads it, then read back and compared.

`models/checkpoint.py` writes the folder; what more is needed for readers older than transformers 5 is added here. Then plain
transformers loads what was written, and its logits, its greedy answers and its prompts must be those of the model in memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from preftune.data.template import Renderer
from preftune.errors import ModelError
from preftune.manifest import write_json
from preftune.models.checkpoint import save_model
from preftune.models.lean import plain_layers
from preftune.models.load import load_causal_lm, load_renderer, max_context, quiet
from preftune.records import Message
from preftune.release.hard_strings import hard_strings

MAX_LOGIT_DIFFERENCE = 1e-4  # float32 read back: the same numbers, so only the order of sums could differ
READ_BACK_TOKENS = 48
READ_BACK_REQUESTS = ("Write a function that adds two numbers.", "Hi", "Ends in a space ")


@dataclass(frozen=True)
class Expected:
    """What the model in memory says to one request: the prompt's ids, the logits after each of its tokens, the greedy answer."""

    messages: tuple[Message, ...]
    ids: list[int]
    logits: Tensor
    completion: list[int]


def load_run(run: Path) -> tuple[PreTrainedModel, Renderer]:
    """Return what is to be released: the run's model in float32 on the CPU, an adapter merged, and its renderer.

    Its layers compute as transformers' do, for that is what others will compare with: our leaner ones sum in another order, which
    moves a logit of a real model by more than 1e-4.
    """
    model = load_causal_lm(run, device=torch.device("cpu"), dtype=torch.float32)
    plain_layers(model)
    return model, load_renderer(run)


def write_folder(model: PreTrainedModel, renderer: Renderer, folder: Path) -> list[Expected]:
    """Write the model as a folder and return what it says, to be compared with what is read back.

    Raises ModelError where there are more tokens than embeddings; more embeddings than tokens are kept as they are.
    """
    words: Any = model.get_input_embeddings()
    rows, tokens = words.weight.shape[0], len(renderer.tokenizer)
    if rows < tokens:
        raise ModelError(f"there are {rows:,} embeddings for {tokens:,} tokens", renderer.where, "Bring the tokenizer that fits the model.")
    save_model(model, renderer, folder)
    tell_older_readers(folder / "config.json")
    expected = []
    for text in READ_BACK_REQUESTS:
        messages = (Message(role="user", content=text),)
        ids = renderer.prompt_ids(messages)
        expected.append(Expected(messages, ids, logits_of(model, ids), greedy(model, ids)))
    return expected


def tell_older_readers(path: Path) -> None:
    """Write into config.json what transformers 5 has renamed also under the name that others read.

    transformers 4, mlx-lm and older converters know `rope_theta`, `rope_scaling` and `torch_dtype`; where they find none they take
    a default in silence, and a model of another base frequency then speaks nonsense.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    local = rope.get("sliding_attention")  # Gemma 3 has two
    rope = rope.get("full_attention", rope)
    older: dict[str, Any] = {}
    if "rope_theta" in rope:
        older["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            older["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        if "partial_rotary_factor" in rope:
            older["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if local:
        older["rope_local_base_freq"] = local["rope_theta"]
    if "dtype" in config:
        older["torch_dtype"] = config["dtype"]
    write_json(path, older | config)


def read_back(folder: Path, renderer: Renderer, expected: list[Expected]) -> float:
    """Return the largest difference of a logit between the model in memory and the folder as plain transformers loads it.

    Raises ModelError where that is more than 1e-4, where a likeliest token, a greedy answer, a rendered prompt or the tokens of a
    hard string differ, or where weights, the chat template or the end-of-turn token did not arrive.
    """
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, info = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    model.eval()
    insist(not info["missing_keys"], f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])}", folder)
    insist(model.dtype == torch.float32, f"the weights came back as {model.dtype}", folder)
    ends = model.generation_config.eos_token_id
    insist(isinstance(ends, list) and set(ends) == renderer.stop_ids, f"generation stops at {ends}", folder)
    insist(tokenizer.chat_template == renderer.template, "the chat template came back changed", folder)
    for text in hard_strings(sorted(set(renderer.tokenizer.all_special_tokens))):
        theirs, ours = (list(t(text, add_special_tokens=False)["input_ids"]) for t in (tokenizer, renderer.tokenizer))
        insist(theirs == ours, f"{text[:40]!r} is cut into other tokens", folder)
    worst = 0.0
    for case in expected:
        turns = [{"role": m.role, "content": m.content} for m in case.messages]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        insist(tokenizer(text, add_special_tokens=False)["input_ids"] == case.ids, f"{turns[-1]['content']!r} is rendered anew", folder)
        logits = logits_of(model, case.ids)
        difference = float((logits - case.logits).abs().max())
        insist(difference <= MAX_LOGIT_DIFFERENCE, f"a logit differs by {difference:.2g}", folder)
        insist(bool((logits.argmax(-1) == case.logits.argmax(-1)).all()), "a likeliest token differs", folder)
        insist(greedy(model, case.ids) == case.completion, f"the greedy answer to {turns[-1]['content']!r} differs", folder)
        worst = max(worst, difference)
    return worst


def insist(holds: bool, trouble: str, where: Path) -> None:
    """Raise ModelError with the trouble unless this holds."""
    if not holds:
        raise ModelError(f"the written model does not read back as the same: {trouble}", str(where), "Nothing was released.")


@torch.no_grad()
def logits_of(model: Any, ids: list[int]) -> Tensor:
    """Return the logits after each token, float32 [T, V]."""
    logits: Tensor = model(torch.tensor([ids])).logits[0]
    return logits.float()


@torch.no_grad()
def greedy(model: Any, ids: list[int]) -> list[int]:
    """Return the greedy answer; the model's own generation config says where it ends, as in any server."""
    room = min(READ_BACK_TOKENS, max_context(model) - len(ids))
    prompt = torch.tensor([ids])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=room)
    completion: list[int] = out[0, len(ids) :].tolist()
    return completion
