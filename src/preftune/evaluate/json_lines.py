"""The lines of a JSON Lines file, as a person counts them."""

from __future__ import annotations

from collections.abc import Iterator


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line) of each line that holds something.

    Lines end at a line feed alone: U+2028, U+0085 and their like, at which `str.splitlines` cuts, may stand inside a JSON text.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line
