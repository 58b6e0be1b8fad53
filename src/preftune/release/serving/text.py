"""Tokens to text while they come: each is read once, and what may be half a letter or the beginning of a stop text waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
UNREADABLE = "\ufffd"


def settled(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return (what of the text can be sent, whether a stop text was met). Held back: a beginning of a stop text, half a letter."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    if places:
        return text[: min(places)], True
    text = text.rstrip(UNREADABLE)
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held], False


class Reader:
    """The text of one answer, token by token.

    whole: decodes an answer from its first token on. later: decodes tokens from within it; only the difference that a further token
    makes is used of this, so it may treat the beginning of what it is given in its own way.
    Only the tokens since the last whole letter, and those before it that it is read after, are decoded again for each new token.
    """

    def __init__(self, whole: Decode, later: Decode, stops: Sequence[str]) -> None:
        self._whole, self._later, self._stops = whole, later, stops
        self._ids: list[int] = []
        self._before, self._read = 0, 0  # tokens from _before on are decoded; those up to _read have been given out as text
        self._held = ""

    @property
    def tokens(self) -> int:
        """How many tokens have come."""
        return len(self._ids)

    def add(self, token: int, *, last: bool) -> tuple[str, bool]:
        """Take a token; return (the text that can be sent now, whether a stop text was met). With the last one all text goes."""
        self._ids.append(token)
        decode = self._later if self._before else self._whole
        old, new = decode(self._ids[self._before : self._read]), decode(self._ids[self._before :])
        if last or (len(new) > len(old) and not new.endswith(UNREADABLE)):
            self._held += new[len(old) :]
            self._before, self._read = self._read, len(self._ids)
        text, met = settled(self._held, self._stops)
        if last and not met:
            text = self._held
        self._held = self._held[len(text) :]
        return text, met
