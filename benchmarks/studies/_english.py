"""A small world of English sentences, and a language model of it that is pretrained on the fly.

Its texts are passages of three sentences, facts ("Mora lives in Tavel."), and conversations whose answers are two sentences. Which verb a
noun takes, and which object a verb, goes by a table of the world's seed, so that there is something to be known. The reward is
how many of the six warm adjectives an answer has; pairs are labelled by it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

NOUNS = "baker sailor gardener painter teacher farmer miller weaver hunter singer porter clerk".split()
OBJECTS = "bread boat rose picture letter apple flour cloth lamp song basket ledger".split()
VERBS = "makes finds sells brings keeps paints washes carries".split()
WARM = "kind gentle bright merry golden lovely".split()
PLAIN = "old tall small heavy narrow wooden grey quick thin round empty broken plain long wet cold".split()
TOWNS = "Tavel Orrin Sumly Bask Lorne Pemby Quill Dorth".split()
NAMES = [first + last for first in ("Mo", "Ka", "Li", "Te", "Su", "Ra", "Vi", "No") for last in ("ra", "lin", "dek", "mas", "vo", "nie")]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Row = dict[str, str]


class World:
    """The tables of one seed, and what can be said by them."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(f"world {seed}")
        self.verbs = {noun: draw.sample(VERBS, 3) for noun in NOUNS}
        self.objects = {verb: draw.sample(OBJECTS, 3) for verb in VERBS}
        self.homes = {name: draw.choice(TOWNS) for name in NAMES}

    def sentence(self, draw: random.Random, noun: str | None = None) -> str:
        """Return "the tall baker makes the old bread."; one adjective in four is warm."""
        noun = noun or draw.choice(NOUNS)
        verb = draw.choice(self.verbs[noun])
        first, second = (draw.choice(WARM if draw.random() < 0.25 else PLAIN) for _ in range(2))
        return f"the {first} {noun} {verb} the {second} {draw.choice(self.objects[verb])}."

    def passage(self, draw: random.Random) -> str:
        """Return three sentences."""
        return " ".join(self.sentence(draw) for _ in range(3))

    def facts(self, draw: random.Random, names: list[str]) -> str:
        """Return four facts about some of these people."""
        return " ".join(f"{name} lives in {self.homes[name]}." for name in draw.sample(names, 4))

    def answer(self, draw: random.Random, noun: str) -> str:
        """Return two sentences about somebody."""
        return f"{self.sentence(draw, noun)} {self.sentence(draw, noun)}"

    def pairs(self, draw: random.Random, count: int) -> list[Row]:
        """Return preference rows: of two answers that differ in it, the one with more warm words was chosen."""
        rows: list[Row] = []
        while len(rows) < count:
            noun = draw.choice(NOUNS)
            worse, better = sorted((self.answer(draw, noun) for _ in range(2)), key=warmth)
            if warmth(worse) < warmth(better):
                # The number tells the prompts apart, which the store would otherwise take for one.
                rows.append({"prompt": f"{len(rows)}: tell me about the {noun}.", "chosen": better, "rejected": worse})
        return rows


def warmth(text: str) -> int:
    """Return how many warm adjectives a text has, those that end a sentence among them."""
    return sum(word.strip(".") in WARM for word in text.split())


def tokenizer() -> Any:
    """Return a byte-level BPE tokenizer in which every word of the world is one token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = [*NOUNS, *OBJECTS, *VERBS, *WARM, *PLAIN, *TOWNS, *NAMES, "the", "lives", "in", "tell", "me", "about", "user", "assistant"]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1200, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator([f"{word} {word}" for word in words for _ in range(3)], trainer)
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    return fast


def conversation(prompt: str, answer: str) -> str:
    """Return a conversation as ChatML has it."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"


def pretrain(world: World, folder: Path, *, steps: int, seed: int) -> Path:
    """Write a Llama of two layers that has learned the world: of its texts 60 % are passages, 15 % facts, 25 % conversations."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    words, draw = tokenizer(), random.Random(f"pretraining {seed}")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words), hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=None, eos_token_id=words.eos_token_id, pad_token_id=None,
        )
    )  # fmt: skip

    def text() -> str:
        kind = draw.random()
        if kind < 0.6:
            return world.passage(draw)
        if kind < 0.75:
            return world.facts(draw, NAMES)
        noun = draw.choice(NOUNS)
        return conversation(f"{draw.randrange(200)}: tell me about the {noun}.", world.answer(draw, noun))

    optimiser = torch.optim.Adam(model.parameters())
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 4e-3 * min(1.0, step / 20) * (1 - step / steps)
        batch = words([text() for _ in range(24)], return_tensors="pt", padding=True)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        optimiser.zero_grad()
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
