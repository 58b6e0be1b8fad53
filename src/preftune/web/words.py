"""Small things that pages say in words: durations, the beginning of a text, a sentence."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a time as people say it: "45 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min" + (f" {rest} s" if rest and minutes < 10 else "")
    hours, rest = divmod(round(whole / 60), 60)
    return f"{hours} h" + (f" {rest} min" if rest else "")


def excerpt(text: str, most: int = 140) -> str:
    """Return a text's beginning in one line, for lists; an ellipsis shows that there is more."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def sentence(text: str) -> str:
    """Return a text that begins with a capital letter, as an error's does not always."""
    return text[:1].upper() + text[1:]
