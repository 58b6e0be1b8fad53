"""Whether a team's preferences are about code, so that the style of code can say what was won."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from preftune.code.style import extract_code
from preftune.data.snapshot import Snapshot

LOOKED_AT = 200  # answers; enough to tell half from less
CODE_FROM = 0.5


def asks_for_code(data: Snapshot) -> bool:
    """Say whether at least half of the answers that people wish for hold Python code, or a held-out prompt comes with a check.

    It is asked of the data and not of the model's answers, so that a model which stops writing code is seen to lose style and not
    excused from it. Held-out answers are looked at first, then those that were trained on; a snapshot without any asks for none.
    """
    if any(prompt.check for prompt in data.held_out_prompts):
        return True
    texts = list(islice(_wished_for(data), LOOKED_AT))
    return bool(texts) and sum(extract_code(text) is not None for text in texts) >= CODE_FROM * len(texts)


def _wished_for(data: Snapshot) -> Iterator[str]:
    yield from (pair.chosen for pair in data.held_out)
    yield from (example.completion for example in data.held_out_demonstrations)
    yield from (pair.chosen for pair in data.train)
    yield from (example.completion for example in data.demonstrations)
    yield from (thumb.completion for thumb in data.thumbs if thumb.desirable)
