"""The one table of keys: the script's handler, the hints beside buttons and the `?` sheet are made from it.

A key is named as the script names it: one character ("?", "u"; a capital letter means with Shift), or a name with its modifiers
("Ctrl+Enter", "Shift+ArrowUp"). Command keys are small letters, so that capital letters can stand for the answers that bear them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from markupsafe import Markup

NAMES = {"ArrowUp": "↑", "ArrowDown": "↓", "Escape": "Esc", "Delete": "Del"}


@dataclass(frozen=True)
class Key:
    """Keys that do one thing.

    page: where they hold: "everywhere", "judge" (all tasks), or "pair", "rank", "best_worst". action: the handler's name in the
    script, which gets the key that was pressed. in_fields: it holds while one writes in a field as well.
    """

    keys: tuple[str, ...]
    action: str
    says: str
    page: str = "judge"
    in_fields: bool = False


KEYS = (
    Key(("?",), "help", "show these keys", "everywhere"),
    Key(("g",), "guide", "read the guidelines", "everywhere"),
    Key(("u",), "undo", "take your last judgement or skip back", "everywhere"),
    Key(("Escape",), "leave", "leave a field, close a window", "everywhere", in_fields=True),
    Key(tuple("1234567"), "choose", "from “A is much better” over “tie” (4) to “B is much better”", "pair"),
    Key(("0",), "clear", "take the choice back", "pair"),
    Key(tuple("123456789"), "place", "put the answer in focus on this place (the same place: a tie)", "rank"),
    Key(("0", "Delete"), "unplace", "take the answer in focus out of the ranking", "rank"),
    Key(("Shift+ArrowUp",), "raise", "move the answer in focus one place up", "rank"),
    Key(("Shift+ArrowDown",), "lower", "move the answer in focus one place down", "rank"),
    Key(("=",), "level", "put the answer in focus level with the one that was in focus before", "rank"),
    Key(("o",), "pairwise", "show only the last two answers in focus, side by side", "rank"),
    Key(("+",), "best", "the answer in focus is the best", "best_worst"),
    Key(("-",), "worst", "the answer in focus is the worst", "best_worst"),
    Key(("0",), "clear", "take best and worst back", "best_worst"),
    Key(tuple("ABCDEFGHI"), "focus", "go to this answer (with Shift)"),
    Key(("j",), "following", "go to the next answer"),
    Key(("k",), "preceding", "go to the answer before"),
    Key(("x",), "acceptable", "mark the answer in focus as good enough, or not"),
    Key(("b",), "bad", "none is good enough"),
    Key(("c",), "reason", "write why"),
    Key(("e",), "rewrite", "write a better version of the best answer"),
    Key(("d",), "diff", "compare two answers line by line"),
    Key(("v",), "raw", "show the text as it was written, without formatting"),
    Key(("n",), "numbers", "number the lines of code"),
    Key(("w",), "wrap", "wrap long lines of code"),
    Key(("f",), "full", "show long answers in full"),
    Key(("y",), "together", "scroll all answers together"),
    Key(("s",), "skip", "skip this one (asks why)"),
    Key(("Ctrl+Enter",), "submit", "submit and go on", in_fields=True),
)
TITLES = {
    "everywhere": "Everywhere",
    "pair": "Two answers",
    "rank": "Ranking",
    "best_worst": "Best and worst",
    "judge": "While judging",
}


def keys_on(page: str) -> tuple[Key, ...]:
    """Return what holds on a page: a task's keys with those of all tasks, or only those that hold everywhere."""
    holding = {"everywhere", page} | ({"judge"} if page in ("pair", "rank", "best_worst") else set())
    return tuple(key for key in KEYS if key.page in holding)


@cache
def script_table(page: str) -> dict[str, dict[str, str | bool]]:
    """Return what the script needs to know: by key, the action and whether it holds inside fields."""
    return {name: {"action": key.action, "inFields": key.in_fields} for key in keys_on(page) for name in key.keys}


def sheet() -> list[tuple[str, list[tuple[Markup, str]]]]:
    """Return the `?` sheet: by page its title and rows of (keys as HTML, what they do)."""
    return [(title, [(shown(key.keys), key.says) for key in KEYS if key.page == page]) for page, title in TITLES.items()]


def shown(keys: tuple[str, ...]) -> Markup:
    """Return keys as HTML; a run of more than three as its first and last."""
    if len(keys) > 3:
        return Markup("{} … {}").format(_cap(keys[0]), _cap(keys[-1]))
    return Markup(" ").join(_cap(key) for key in keys)


@cache
def hint(action: str, page: str = "judge") -> Markup:
    """Return the key of an action as HTML, for the button that does the same. Raises KeyError where no key does it."""
    for key in KEYS:
        if key.action == action and key.page in (page, "judge", "everywhere"):
            return Markup('<span class="hint">{}</span>').format(shown(key.keys[:1]))
    raise KeyError(f"no key does {action!r} on {page!r}")


def _cap(key: str) -> Markup:
    parts = key.split("+") if len(key) > 1 else [key]
    return Markup("+").join(Markup("<kbd>{}</kbd>").format(NAMES.get(part, part)) for part in parts)
