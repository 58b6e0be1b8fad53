"""What users of a served model say of its answers, as judgements and demonstrations that are deleted when their time is over.

A thumb is a judgement of one candidate, an edit a judgement with a rewrite and a demonstration, "which is better" a judgement of two.
Beside each stands a row that says which model answered, what the user had been told (the consent), and until when all this may be kept.
Whoever says something else of the same answer supersedes the former word; saying the same again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Row, select, update

from preftune.data import tables
from preftune.data.store import Store, Writer
from preftune.errors import DataError
from preftune.records import Candidate, Demonstration, Judgement, Message, Prompt, content_id

PICKED_BY = "feedback"
WITHDRAWN = ""  # `said` of a word that was taken back
F = tables.feedback


@dataclass(frozen=True)
class Answer:
    """An answer that a server gave. id, index: as its reply named it. split: the two models that it was drawn from, or None."""

    id: str
    index: int
    messages: tuple[Message, ...]
    text: str
    model: str
    split: tuple[str, str] | None = None
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def characters(self) -> int:
        """How much it holds."""
        return len(self.text) + sum(len(message.content) for message in self.messages)


@dataclass(frozen=True)
class Word:
    """What somebody says: a thumb, an edit, or which of two answers is better. answers: in the order shown. rater: a pseudonym."""

    answers: tuple[Answer, ...]
    rater: str
    thumb: Literal["up", "down", "none"] | None = None
    edit: str | None = None
    better: Literal[0, 1, "tie"] | None = None
    comment: str | None = None

    @property
    def kind(self) -> str:
        """Return "thumb", "edit" or "better"."""
        return "thumb" if self.thumb else "edit" if self.edit is not None else "better"


NAMES = {"thumb": ("thumb", "thumbs"), "edit": ("edit", "edits"), "better": ("comparison of two", "comparisons of two")}


def by_kind(words: Mapping[str, int]) -> str:
    """Return how many words there are of each kind, for a person; "" where there are none."""
    return ", ".join(f"{count:,} {NAMES[kind][count != 1]}" for kind, count in sorted(words.items()) if count)


@dataclass(frozen=True)
class Taken:
    """Where a word landed. new: whether it changed anything."""

    judgement: str | None
    new: bool


def consent_id(text: str) -> str:
    """Return the id of a consent text."""
    return content_id("consent", text)


def record_consent(store: Store, text: str) -> str:
    """Note what users are told from now on; return its id."""
    name, table = consent_id(text), tables.consents
    with store.writer() as writer:
        if writer.connection.execute(select(table.c.id).where(table.c.id == name)).first() is None:
            writer.connection.execute(table.insert(), [{"id": name, "text": text, "created": datetime.now(UTC)}])
    return name


def take(store: Store, word: Word, *, consent: str, keep_days: int) -> Taken:
    """Write a word into the store. keep_days: how long it stays, from now on. consent: the id of a recorded text.

    Raises DataError where the two answers are the same, or of different prompts, or an edit changes nothing.
    """
    prompt, candidates = _records(word)
    about = content_id(word.kind, word.rater, sorted(candidate.id for candidate in candidates))
    said = None if word.thumb == "none" else _judgement(word, prompt, candidates)
    now = datetime.now(UTC)
    with store.writer() as writer:
        connection = writer.connection
        head = connection.execute(select(F).where(F.c.about == about).order_by(F.c.number.desc()).limit(1)).first()
        if (head.said if head else WITHDRAWN) == (said.id if said else WITHDRAWN):
            return Taken(head.judgement_id if head else None, new=False)
        until = now + timedelta(days=keep_days)
        if head is not None:
            _drop_demonstration(connection, head)
            connection.execute(update(F).where(F.c.about == about).values(expires=until, demonstration_id=None))
        if said is None:
            assert head is not None
            said_now = Judgement(prompt_id=prompt.id, rater=word.rater, picked_by=PICKED_BY, supersedes=head.judgement_id, created=now)
        else:
            said_now = said.model_copy(update={"supersedes": head.judgement_id if head else None, "created": now})
        demonstrations = [Demonstration(prompt_id=prompt.id, text=word.edit, author=word.rater)] if word.edit is not None else []
        new = writer.add([prompt], candidates, [said_now], demonstrations)
        row = {
            "about": about,
            "kind": word.kind,
            "rater": word.rater,
            "prompt_id": prompt.id,
            "judgement_id": said_now.id,
            "demonstration_id": next(iter(new["demonstrations"]), None),
            "said": said.id if said else WITHDRAWN,
            "candidate_ids": [candidate.id for candidate in candidates],
            "models": [answer.model for answer in word.answers],
            "split": list(word.answers[0].split) if word.answers[0].split else None,
            "made": sorted(new["prompts"] | new["candidates"] | _made_before(connection, prompt.id)),
            "consent_id": consent,
            "created": now,
            "expires": until,
        }
        connection.execute(F.insert(), [row])
    return Taken(said_now.id, new=True)


def _records(word: Word) -> tuple[Prompt, list[Candidate]]:
    where = "feedback"
    messages = {answer.messages for answer in word.answers}
    if len(messages) > 1:
        raise DataError("the two answers are to different conversations", where, "Compare answers to the same one.")
    prompt = Prompt(messages=word.answers[0].messages)
    candidates = [Candidate(prompt_id=prompt.id, text=a.text, source=a.model, sampling=a.sampling) for a in word.answers]
    if len({candidate.id for candidate in candidates}) < len(candidates):
        raise DataError("the two answers say the same", where, "There is nothing to prefer.")
    if word.edit is not None and word.edit.strip() == word.answers[0].text.strip():
        raise DataError("the edit changes nothing", where, "Give a thumb where the answer is good as it is.")
    return prompt, candidates


def _judgement(word: Word, prompt: Prompt, candidates: Sequence[Candidate]) -> Judgement:
    about: dict[str, Any] = {"prompt_id": prompt.id, "rater": word.rater, "rationale": word.comment, "picked_by": PICKED_BY}
    names = tuple(candidate.id for candidate in candidates)
    if word.better == "tie":
        return Judgement(ranking=(names,), presentation=names, **about)
    if word.better is not None:
        order = names if word.better == 0 else names[::-1]
        return Judgement(ranking=tuple((name,) for name in order), presentation=names, **about)
    if word.edit is not None:  # whoever rewrites an answer does not find it good enough as it is
        return Judgement(ranking=(names,), acceptable=(), rewrite=word.edit, rewrite_of=names[0], **about)
    return Judgement(ranking=(names,), acceptable=names if word.thumb == "up" else (), **about)


def _made_before(connection: Connection, prompt_id: str) -> set[str]:
    return {name for made in connection.execute(select(F.c.made).where(F.c.prompt_id == prompt_id)).scalars() for name in made}


def _drop_demonstration(connection: Connection, row: Row[Any]) -> int:
    table = tables.demonstrations
    mine = (table.c.id == row.demonstration_id) & (table.c.author == row.rater)
    return connection.execute(table.delete().where(mine)).rowcount if row.demonstration_id else 0


@dataclass
class Gone:
    """How much was deleted.

    words: those that stood. changed: judgements that said something else before, or that took a word back.
    """

    words: int = 0
    changed: int = 0
    demonstrations: int = 0
    candidates: int = 0
    prompts: int = 0


def expire(store: Store, now: datetime | None = None) -> Gone:
    """Delete all feedback whose time is over: judgements, demonstrations, and the prompts and answers that came by it alone.

    Prompts and answers that others have judged since, or that came by other ways too, stay.
    """
    gone = Gone()
    with store.writer() as writer:
        over = writer.connection.execute(select(F).where(F.c.expires <= (now or datetime.now(UTC))).order_by(F.c.number)).all()
        last = {row.about: row.number for row in over}
        for row in over:
            gone.demonstrations += _drop_demonstration(writer.connection, row)
            writer.connection.execute(F.delete().where(F.c.number == row.number))
            # A word and those that it superseded end together, so that none is left that speaks of one that is gone.
            deleted = writer.connection.execute(tables.judgements.delete().where(tables.judgements.c.id == row.judgement_id)).rowcount
            if row.said != WITHDRAWN and row.number == last[row.about]:
                gone.words += deleted
            else:
                gone.changed += deleted
        for prompt_id in dict.fromkeys(row.prompt_id for row in over):
            _clear(writer, prompt_id, {name for row in over if row.prompt_id == prompt_id for name in row.made}, gone)
    return gone


def _clear(writer: Writer, prompt_id: str, made: set[str], gone: Gone) -> None:
    connection, candidates = writer.connection, tables.candidates
    used: set[str] = set()
    for row in connection.execute(select(tables.judgements).where(tables.judgements.c.prompt_id == prompt_id)):
        used |= {name for tier in row.ranking for name in tier} | set(row.presentation) | {row.rewrite_of or ""}
    for names in connection.execute(select(tables.items.c.candidate_ids).where(tables.items.c.prompt_id == prompt_id)).scalars():
        used |= set(names)
    unused = sorted(made - used - {prompt_id})
    mine = (candidates.c.prompt_id == prompt_id) & candidates.c.id.in_(unused)
    gone.candidates += connection.execute(candidates.delete().where(mine)).rowcount
    tied = (candidates, tables.judgements, tables.demonstrations, tables.items, F)
    if prompt_id in made and not any(
        connection.execute(select(t.c.prompt_id).where(t.c.prompt_id == prompt_id).limit(1)).first() for t in tied
    ):
        gone.prompts += connection.execute(tables.prompts.delete().where(tables.prompts.c.id == prompt_id)).rowcount


def rows_since(store: Store, since: datetime | None = None, until: datetime | None = None) -> list[Row[Any]]:
    """Return the words that stand, oldest first: of each answer and rater the last one, unless it was taken back."""
    with store.reading() as connection:
        rows = connection.execute(select(F).order_by(F.c.number)).all()
    last = {row.about: row for row in rows}
    kept = [row for row in last.values() if row.said != WITHDRAWN]
    return [row for row in kept if (since is None or row.created >= since) and (until is None or row.created < until)]
