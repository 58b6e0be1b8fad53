"""Raw text is gone on with as transformers does it, up to the first stop text."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.evaluate.subject import Subject

PROMPTS = ["def add(first: int", "for name in names:\n    ", "Use pathlib"]


def by_transformers(folder, prompt: str, tokens: int, stops: frozenset[int]) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]  # with the BOS that the tokenizer puts there
    for _ in range(tokens):
        token = int(model(ids).logits[0, -1].argmax())
        if token in stops:
            break
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    whole = tokenizer.decode(ids[0], skip_special_tokens=True)
    return whole[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_greedy_text_is_that_of_transformers(tiny_folder, family: str) -> None:
    folder = tiny_folder(family)
    subject = Subject(folder)
    theirs = [by_transformers(folder, prompt, 20, subject.renderer.stop_ids) for prompt in PROMPTS]
    assert subject.complete(PROMPTS, stops=(), max_new_tokens=20, temperature=0.0, seed=0) == theirs


def test_a_text_ends_before_the_first_stop_text(tiny_model_folder) -> None:
    subject = Subject(tiny_model_folder)
    whole = subject.complete(PROMPTS[:1], stops=(), max_new_tokens=20, temperature=0.0, seed=0)[0]
    stop = whole[3:5]
    cut = subject.complete(PROMPTS[:1], stops=("never there", stop), max_new_tokens=20, temperature=0.0, seed=0)[0]
    assert cut == whole[: whole.index(stop)]


def test_samples_of_one_prompt_differ_and_come_again_with_the_seed(tiny_model_folder) -> None:
    subject = Subject(tiny_model_folder)
    drawn, again, other = (subject.complete(PROMPTS[:1] * 4, stops=(), max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert len(set(drawn)) == 4
    assert drawn == again != other
