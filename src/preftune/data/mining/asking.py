"""From what a commit did to a prompt and answers: what is asked is made from signature, docstring and commit message."""

from __future__ import annotations

import re
from dataclasses import dataclass

from preftune.data.mining.filters import module_of
from preftune.data.mining.functions import Function, signature
from preftune.data.mining.git import Commit
from preftune.records import Candidate, Demonstration, Judgement, Message, Prompt

RATER = "git history"
CODE, DOCSTRING, FORMAT, NEW = "mined:code", "mined:docstring", "mined:format", "mined:new"


@dataclass(frozen=True)
class MinedPair:
    """A function before (rejected) and after (chosen) a commit. before: already under the name that it has after. path: the one after."""

    commit: Commit
    path: str
    before: Function
    after: Function
    before_name: str
    kind: str
    prompt: Prompt
    note: str

    @property
    def where(self) -> str:
        """The commit, file and function."""
        return f"git:{self.commit.sha}:{self.path}:{self.after.name}"

    def records(self) -> tuple[list[Candidate], Judgement]:
        """Return the two candidates, each with its commit, and the judgement that the one after is better."""
        candidates = []
        for side, function in (("after", self.after), ("before", self.before)):
            told = {"commit": self.commit.sha, "path": self.path, "function": self.after.name, "side": side}
            if side == "before" and self.before_name != self.after.name:
                told["renamed_from"] = self.before_name
            source = f"{self.where}:{side}"
            candidates.append(Candidate(prompt_id=self.prompt.id, text=answer_of(function), source=source, sampling=told))
        ranking = tuple((candidate.id,) for candidate in candidates)
        judgement = Judgement(
            prompt_id=self.prompt.id,
            ranking=ranking,
            rater=RATER,
            rationale=self.note or None,
            picked_by="mined",
            created=self.commit.time,
        )
        return candidates, judgement


@dataclass(frozen=True)
class MinedDemonstration:
    """A function as it stands at the tip, and the commit that added it."""

    sha: str
    path: str
    function: Function
    prompt: Prompt

    @property
    def where(self) -> str:
        """The commit, file and function."""
        return f"git:{self.sha}:{self.path}:{self.function.name}"

    def record(self) -> Demonstration:
        """Return the demonstration; in place of an author it names the commit."""
        return Demonstration(prompt_id=self.prompt.id, text=answer_of(self.function), author=self.where)


def answer_of(function: Function) -> str:
    """Return a function as an answer: a code block."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", function.text)), default=0))
    return f"{fence}python\n{function.text}\n{fence}"


def prompt_for(after: Function, path: str, *, kind: str, before: Function | None = None, note: str = "") -> Prompt | None:
    """Return what to ask so that the function is an answer, or None where nothing says what it should do.

    Described by the first paragraph of the docstring (that of the version after, where both have one; none where the docstring is what
    changed, since it would give the answer away) and by the note, the cleaned message of the commit.
    """
    described = "" if kind == DOCSTRING else first_paragraph(after.docstring) or (first_paragraph(before.docstring) if before else "")
    if not described and not note:
        return None
    is_async = type(after.node).__name__ == "AsyncFunctionDef"
    what = f"{'asynchronous ' if is_async else ''}{'method' if after.is_method else 'function'}"
    parts = [f"Write the Python {what} `{signature(after, before)}` of the module `{module_of(path)}`."]
    if described:
        parts.append(described)
    if note:
        parts.append(f"Keep in mind: {note}")
    return Prompt(messages=(Message(role="user", content="\n\n".join(parts)),), kind=kind)


def first_paragraph(docstring: str) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join(re.split(r"\n\s*\n", docstring.strip())[0].split())
