"""The pretraining mix: what PPO learns beside the reward, so that it does not forget (InstructGPT, Ouyang et al. 2203.02155, eq. 2)."""

from __future__ import annotations

from pathlib import Path

from preftune.data.batches import Encoded, Group, batch_indices, encode
from preftune.data.rows import Rows
from preftune.errors import DataError
from preftune.models.load import find
from preftune.stages.common import Room


class PretrainingMix:
    """Examples that are learned by plain likelihood. coef: the weight of their loss, the mean over their tokens."""

    def __init__(self, coef: float, encoded: Encoded, *, seed: int) -> None:
        self.coef, self.encoded, self._seed = coef, encoded, seed

    def examples(self, count: int, update: int) -> list[Group]:
        """Return the examples of optimiser step `update` (from 0): a function of the seed and that number."""
        return [self.encoded.groups[i] for i in batch_indices(len(self.encoded.groups), count, update, seed=self._seed)]


def open_mix(room: Room, coef: float, text: str | None, *, seed: int) -> PretrainingMix:
    """Return the mix of a text file, or of the snapshot's demonstrations (its chosen answers where it has none).

    Raises DataError where there is nothing to learn.
    """
    if text is not None:
        encoded = texts(room, find(text, room.project))
    else:
        examples = room.snapshot.demonstrations or room.snapshot.chosen_as_demonstrations()
        encoded = encode(room.renderer, ((e.messages, [e.completion]) for e in examples), max_tokens=room.max_tokens)
    return PretrainingMix(coef, encoded, seed=seed)


def texts(room: Room, path: Path) -> Encoded:
    """Return the texts of a file, between blank lines, as they are: no template; a text that is too long is cut into pieces, not off."""
    tokenizer = room.renderer.tokenizer
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    groups = Rows[Group]()
    for text in path.read_text(encoding="utf-8").split("\n\n"):
        ids = tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
        size = room.max_tokens - len(begin)
        for at in range(0, len(ids), size):
            whole = begin + ids[at : at + size]
            if len(whole) > 1:  # the first token is what the others are predicted from
                groups.append(Group((whole[0],), (tuple(whole[1:]),), len(groups)))
    if not groups:
        raise DataError("there is no text in it", str(path), "Give a file with texts, blank lines between them.")
    return Encoded(groups)
