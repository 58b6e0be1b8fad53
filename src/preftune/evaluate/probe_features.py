"""What the quick reward probe sees of an answer: its words, its outer form, and with a model at hand the model's own view of it.

Words: counts of single tokens and of two in a row, hashed into 2^14 columns. Form: length, lines, lists, code and the like.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from preftune.evaluate.probe import Matrix
from preftune.progress import Progress, Silent
from preftune.records import Message

if TYPE_CHECKING:
    from preftune.evaluate.subject import Subject

COLUMNS = 2**14
MAX_TOKENS = 4000  # of an answer that are looked at; beyond that one more word tells little
_TOKEN = re.compile(r"\w+|[^\w\s]|\n")

Answer = tuple[tuple[Message, ...], str]  # the prompt's messages, and the answer
Featurise = Callable[[Sequence[Answer]], Matrix]  # → [n, d]

# The outer form: a name and a pattern; what is counted is how often it is found.
FORM: dict[str, re.Pattern[str]] = {
    "lines": re.compile(r"\n"),
    "paragraphs": re.compile(r"\n\s*\n"),
    "lists": re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE),
    "headings": re.compile(r"^#+\s", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
    "code fences": re.compile(r"^\s*```", re.MULTILINE),
    "questions": re.compile(r"\?"),
    "exclamations": re.compile(r"!"),
    "numbers": re.compile(r"\d+"),
    "capitals": re.compile(r"\b[A-Z]{2,}\b"),
    "comments": re.compile(r"^\s*(?:#|//)", re.MULTILINE),
    "links": re.compile(r"https?://"),
}


def text_features(answers: Sequence[Answer]) -> Matrix:
    """Return the features of each answer's text, [n, 2^14 + forms + 2]; the prompt is not looked at, since both answers share it."""
    made: dict[str, tuple[NDArray[np.int32], NDArray[np.float64]]] = {}
    for _, text in answers:
        if text not in made:
            made[text] = _row(text)
    rows = [made[text] for _, text in answers]
    lengths = np.array([0, *(columns.size for columns, _ in rows)])
    values = np.concatenate([v for _, v in rows]) if rows else np.zeros(0)
    columns = np.concatenate([c for c, _ in rows]) if rows else np.zeros(0, dtype=np.int32)
    return sparse.csr_array((values, columns, np.cumsum(lengths)), shape=(len(rows), COLUMNS + len(FORM) + 2))


def _row(text: str) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    tokens = _TOKEN.findall(text)[:MAX_TOKENS]
    grams = Counter(tokens) + Counter(map(" ".join, pairwise(tokens)))
    hashed: Counter[int] = Counter()
    for gram, count in grams.items():
        hashed[zlib.crc32(gram.encode("utf-8", "replace")) % COLUMNS] += count
    words = np.log1p(np.array(list(hashed.values()), dtype=np.float64))
    norm = np.linalg.norm(words)
    form = [np.log1p(len(text)), np.log1p(len(tokens)), *(np.log1p(len(pattern.findall(text))) for pattern in FORM.values())]
    columns = np.array([*hashed, *range(COLUMNS, COLUMNS + len(form))], dtype=np.int32)
    # Words get length 1 together, so that a long answer is not louder; a log count of form is at most some units.
    return columns, np.concatenate([words / norm if norm else words, np.array(form) / 4])


def hidden_features(
    subject: Subject, reference: Sequence[Answer], *, max_tokens: int = 2048, progress: Progress | None = None
) -> Featurise:
    """Return features that hold the model's last hidden states too: of the end token, and the mean over the answer's tokens.

    reference: answers whose mean and spread set the scale of the states. Answers that do not fit the model's context with their prompt
    have their text's features alone.
    """
    progress = progress or Silent()
    seen = _states(subject, reference, max_tokens, progress)
    there = seen[np.abs(seen).sum(axis=1) > 0]
    mean, spread = (there.mean(axis=0), there.std(axis=0)) if len(there) else (np.zeros(seen.shape[1]), np.ones(seen.shape[1]))
    scale = np.where(spread > 0, spread, 1.0) * np.sqrt(seen.shape[1] / 16)  # together some units, as loud as the form

    def features(answers: Sequence[Answer]) -> Matrix:
        states = _states(subject, answers, max_tokens, progress)
        fits = np.abs(states).sum(axis=1, keepdims=True) > 0
        return sparse.csr_array(sparse.hstack([sparse.csr_array(np.where(fits, (states - mean) / scale, 0.0)), text_features(answers)]))

    return features


def _states(subject: Subject, answers: Sequence[Answer], max_tokens: int, progress: Progress) -> NDArray[np.float64]:
    """Return [n, 2H]; a row of zeros where an answer does not fit."""
    import torch

    from preftune.data.batches import Group, collate, split_by_budget
    from preftune.models.load import device_of, hidden_states, unwrap

    limit = min(max_tokens, subject.max_tokens)
    found = np.zeros((len(answers), 2 * int(unwrap(subject.model).config.get_text_config().hidden_size)))
    groups = []
    for place, (messages, text) in enumerate(answers):
        prompt, completion = subject.renderer.prompt_ids(messages), subject.renderer.completion_ids(text)
        if len(prompt) + len(completion) <= limit:
            groups.append(Group(tuple(prompt), (tuple(completion),), place))
    with torch.no_grad(), progress.stage("reading answers", total=len(groups), unit="answers") as task:
        for part in split_by_budget(groups, max_tokens):
            batch = collate(part, subject.renderer.pad_id, tree=subject.tree).to(device_of(subject.model))
            hidden = hidden_states(subject.model, batch).float()
            for row, group in enumerate(part):
                own = hidden[row, batch.completion_mask[row]]
                found[group.index] = torch.cat([own[-1], own.mean(0)]).cpu().double().numpy()
            task.advance(len(part))
    return found
