"""A thousand strings that tokenizers get wrong: the same each time, so that two readings of one vocabulary can be compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

COUNT = 1000
LONG = 4000  # characters
SCRIPTS = (
    (0x20, 0x7E), (0xA1, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5F4), (0x600, 0x6FF), (0x900, 0x97F),
    (0xE00, 0xE5B), (0x1100, 0x11FF), (0x2000, 0x206F), (0x20A0, 0x20BF), (0x2190, 0x21FF), (0x2460, 0x24FF), (0x3040, 0x30FF),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFB4F), (0xFF00, 0xFFEF), (0x10330, 0x1034A), (0x1D400, 0x1D7FF), (0x1F300, 0x1F64F),
)  # fmt: skip
SPACES = (
    " ",
    "  ",
    "    ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    " \n",
    "\n ",
    "\t\t",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
    "\u2028",
    "\x0b",
)
EMOJI = ("😀", "👩\u200d💻", "👨\u200d👩\u200d👧", "🇩🇪", "👍🏽", "❤\ufe0f", "1\ufe0f\u20e3", "🏴\U000e0067\U000e0062\U000e007f", "🫠")
CODE = (
    "def f(x: int) -> int:\n    return x ** 2  # 4²\n", "for (int i = 0; i < n; ++i) { a[i] += 0x1F; }", "SELECT * FROM t WHERE a='it''s';",
    "</div><!-- {{ x|safe }} -->", "if x:\n\t\tpass\n\n\n", "λ = lambda *a, **k: None", "a!=b&&!(c||d)??e", "https://a.b/c?d=e&f=%20#g",
    "r'\\d+\\s*$'",
    '{"k": [1, 2.50, -3e-10, null]}', "#!/bin/sh\nset -e\n", "x = 'don''t' \"I'll\" WE'VE they'Re",
)  # fmt: skip
WORDS = "the of Tokenization naïve Ünïcödé 1234567 3.14159 don't I'M we'll 10,000 e\u0301 café \ufb01n ½ Straße İstanbul".split()
FOREIGN = (
    "<|im_start|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "[INST]",
    "<eos>",
    "<0x0A>",
    "<unk>",
    "[PAD1]",
    "<|",
    "\u2581",
    "Ġthe",
    "<|im_end",
)


def hard_strings(control: Sequence[str]) -> list[str]:
    """Return the strings; control: the tokenizer's own control tokens, which stand in some of them."""
    chance = random.Random(0)
    kinds: tuple[Callable[[random.Random, Sequence[str]], str], ...] = (_scripts, _mixed, _spaced, _emoji, _code, _control, _numbers)
    fixed = ["", *SPACES, *EMOJI, *CODE, *WORDS, *FOREIGN, *control, *(f" {token} x" for token in control)]
    fixed += [part * (LONG // len(part)) for part in ("a", " ", "\n", "ab ", "🫠", "1", "=-", "word ", "\t\n")]
    made = [kinds[i % len(kinds)](chance, control) for i in range(COUNT - len(fixed))]
    return [*fixed[:COUNT], *made]


def _some(chance: random.Random, of: Sequence[str], most: int) -> list[str]:
    return [chance.choice(of) for _ in range(chance.randint(1, most))]


def _scripts(chance: random.Random, _: Sequence[str]) -> str:
    first, last = chance.choice(SCRIPTS)
    return "".join(chr(chance.randint(first, last)) for _ in range(chance.randint(1, 40)))


def _mixed(chance: random.Random, _: Sequence[str]) -> str:
    return "".join(chr(chance.randint(*chance.choice(SCRIPTS))) for _ in range(chance.randint(1, 80)))


def _spaced(chance: random.Random, _: Sequence[str]) -> str:
    return "".join(_some(chance, SPACES, 4) + _some(chance, (*SPACES, *WORDS, "7", "x"), 30))


def _emoji(chance: random.Random, _: Sequence[str]) -> str:
    return "".join(_some(chance, (*EMOJI, " ", "ok"), 12))


def _code(chance: random.Random, _: Sequence[str]) -> str:
    return chance.choice(("\n", " ", "")).join(_some(chance, CODE, 5))


def _control(chance: random.Random, control: Sequence[str]) -> str:
    return "".join(_some(chance, (*FOREIGN, *control, *control, " ", "\n", "user", "Hi", *WORDS), 12))


def _numbers(chance: random.Random, _: Sequence[str]) -> str:
    return "".join(_some(chance, (*"0123456789", " ", "  ", ".", ",", "\n", "٣", "²", "Ⅷ", "e5"), 40))
