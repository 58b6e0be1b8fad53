"""What there is to judge: items are made here, and here alone is it counted how many of their slots are taken.

An item is "these candidates of this prompt, to be judged so". `wanted` raters are to judge it and `taken` slots are judged or held
by a live lease; `queue` says which of the queues it stands in, so that the next item is found by an index whatever their number:
fresh (no slot taken), started (some), closed (all), or gold (whose answer is known; it has no slots, every rater meets it once).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import combinations

from sqlalchemy import ColumnElement, Connection, Integer, Row, Update, bindparam, case, exists, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from preftune.data import tables
from preftune.data.store import CHUNK, Store, Writer
from preftune.errors import DataError
from preftune.records import GOLD, content_id
from preftune.web import audit
from preftune.web.persons import Person, demand_owner
from preftune.web.settings import LabelSettings, Task

MAX_CANDIDATES = 9
MAX_PRIORITY = 1000
JUDGED_BEFORE = -1  # the priority of prompts that came with judgements: what nobody has judged goes first


@dataclass(frozen=True)
class Pick:
    """An item to be made. picked_by: the policy, "random" for the unbiased stratum; picked_probability: that it would pick this."""

    prompt_id: str
    candidate_ids: tuple[str, ...]
    picked_by: str = "random"
    picked_probability: float | None = 1.0
    priority: int = 0
    task: Task | None = None  # None: as the settings say
    note: str | None = None

    @property
    def id(self) -> str:
        """The same candidates are the same item, whoever picked them."""
        return item_id(self.prompt_id, self.candidate_ids, "normal")


def item_id(prompt_id: str, candidate_ids: Iterable[str], purpose: str) -> str:
    """Return the id of the item of these candidates."""
    return content_id("item", prompt_id, sorted(candidate_ids), purpose)


def fill_items(store: Store, settings: LabelSettings) -> int:
    """Make an item of every prompt with 2 to 9 candidates that has none, and return how many were made.

    Called when the server starts and after imports; it also gives items whose overlap was not set by hand the overlap that the
    settings say now. Where the task is "pair", one pair of a prompt is drawn evenly, with its probability. A share of the items
    (settings.overlap_share) is judged by settings.overlap_extra raters.
    """
    _refresh_overlap(store, settings)
    made, last = 0, 0
    while True:
        with store.reading() as connection:
            prompts = _prompts_without_items(connection, after=last)
            picks = [pick for pick in _picks(connection, [row.id for row in prompts], settings) if pick]
        if picks:
            with store.writer() as writer:
                made += add_items(writer, picks, settings)
        if len(prompts) < CHUNK:
            return made
        last = prompts[-1].number


def add_items(writer: Writer, picks: Sequence[Pick], settings: LabelSettings) -> int:
    """Make items and return how many were new; of candidates that are an item already nothing is changed.

    Raises DataError where a pick has fewer than 2 or more than 9 candidates.
    """
    now, rows = datetime.now(UTC), []
    for pick in picks:
        if not 2 <= len(set(pick.candidate_ids)) == len(pick.candidate_ids) <= MAX_CANDIDATES:
            raise DataError(f"an item has 2 to 9 different candidates, this one has {len(pick.candidate_ids)}", f"prompt {pick.prompt_id}")
        extra = unit(pick.id, "overlap") < settings.overlap_share and settings.overlap_extra > settings.overlap
        overlap = settings.overlap_extra if extra else None
        row = {
            "id": pick.id,
            "prompt_id": pick.prompt_id,
            "candidate_ids": list(pick.candidate_ids),
            "task": pick.task or settings.task_for(len(pick.candidate_ids)),
            "purpose": "normal",
            "note": pick.note,
            "picked_by": pick.picked_by,
            "picked_probability": pick.picked_probability,
            "priority": pick.priority,
            "overlap": overlap,
            "wanted": overlap or settings.overlap,
        }
        rows.append({**row, **_new(pick.id, now)})
    return _insert(writer.connection, rows)


def add_gold(
    store: Store, by: Person, prompt_id: str, candidate_ids: Sequence[str], expected: Sequence[Sequence[str]], note: str = ""
) -> str:
    """Make a gold item and return its id: candidates whose right ranking is known, to test raters by.

    expected: the ranking, best first, ties together. Every rater meets it once, as one task among others. Judgements of it are kept
    with picked_by "gold" and teach no model. Raises DataError where it cannot be one.
    """
    demand_owner(by)
    ranked = [candidate for tier in expected for candidate in tier]
    if sorted(ranked) != sorted(set(candidate_ids)) or len(ranked) != len(candidate_ids) or not all(expected):
        raise DataError("the expected ranking must have each candidate once", f"prompt {prompt_id}", "Rank them all; ties are allowed.")
    if not 2 <= len(ranked) <= MAX_CANDIDATES or len(expected) < 2:
        raise DataError("a gold item needs 2 to 9 candidates of which one is better", f"prompt {prompt_id}", "Take another.")
    name = item_id(prompt_id, ranked, GOLD)
    with store.writer() as writer:
        table = tables.candidates
        known = select(table.c.id).where(table.c.prompt_id == prompt_id, table.c.id.in_(ranked))
        if set(writer.connection.execute(known).scalars()) != set(ranked):
            raise DataError("a candidate is not one of this prompt's in the store", f"prompt {prompt_id}", "Import it first.")
        row = {
            "id": name,
            "prompt_id": prompt_id,
            "candidate_ids": list(candidate_ids),
            "task": "pair" if len(ranked) == 2 else "rank",
            "purpose": GOLD,
            "expected": [list(tier) for tier in expected],
            "note": note,
            "picked_by": GOLD,
            "picked_probability": None,
            "priority": 0,
            "overlap": None,
            "wanted": 0,
        }
        if not _insert(writer.connection, [{**row, **_new(name, datetime.now(UTC)), "queue": "gold"}]):
            raise DataError("these candidates are a gold item already", f"prompt {prompt_id}", "Take others.")
        audit.record(writer.connection, by.pseudonym, "add gold", name)
    return name


def retire_gold(store: Store, by: Person, item: str) -> None:
    """Let a gold item be asked no more; what was judged of it stays."""
    demand_owner(by)
    table = tables.items
    with store.writer() as writer:
        changed = writer.connection.execute(
            update(table).where(table.c.id == item, table.c.purpose == GOLD).values(queue="closed")
        ).rowcount
        if not changed:
            raise DataError(f'there is no gold item "{item}"', fix="Look at the list of gold items again.")
        audit.record(writer.connection, by.pseudonym, "retire gold", item)


def set_priority(store: Store, by: Person, item: str, priority: int) -> None:
    """Let an item come earlier (a higher number) or later; the items of a higher priority are given out first."""
    demand_owner(by)
    if abs(priority) > MAX_PRIORITY:
        raise DataError(f"a priority of {priority:,} is out of bounds", fix=f"Use {-MAX_PRIORITY} to {MAX_PRIORITY}.")
    _set(store, by, item, "set priority", {"priority": priority}, priority=priority)


def set_overlap(store: Store, by: Person, item: str, overlap: int | None, settings: LabelSettings) -> None:
    """Say how many raters are to judge an item; None: as the settings say."""
    demand_owner(by)
    if overlap is not None and not 1 <= overlap <= 9:
        raise DataError(f"an overlap of {overlap} is out of bounds", fix="Use 1 to 9.")
    wanted = overlap or settings.overlap
    _set(store, by, item, "set overlap", {"overlap": overlap}, overlap=overlap, wanted=wanted, queue=_queue(tables.items.c.taken, wanted))


def shift_taken(connection: Connection, item: str, by: int) -> None:
    """Count one more slot of an item as taken (by = 1), or one less (−1), and put it into the queue where it belongs then."""
    connection.execute(_shifted(), {"item": item, "by": by})


def unit(*parts: object) -> float:
    """Return a number in [0, 1) that hangs on the parts alone and on nothing that they mean: the house's dice."""
    return int(content_id(*parts), 16) / 16**16


@cache
def _shifted() -> Update:  # built once, as building it takes longer than running it
    table = tables.items
    taken = table.c.taken + bindparam("by", type_=Integer)
    return update(table).where(table.c.id == bindparam("item")).values(taken=taken, queue=_queue(taken, table.c.wanted))


def _queue(taken: ColumnElement[int], wanted: ColumnElement[int] | int) -> ColumnElement[str]:
    open_ = case((taken == 0, "fresh"), else_="started")
    return case((tables.items.c.purpose == GOLD, tables.items.c.queue), (taken >= wanted, "closed"), else_=open_)


def _new(name: str, now: datetime) -> dict[str, object]:
    return {"taken": 0, "queue": "fresh", "shuffle": int(unit(name, "shuffle") * 2**31), "created": now}


def _insert(connection: Connection, rows: list[dict[str, object]]) -> int:
    table = tables.items
    known = set(connection.execute(select(table.c.id).where(table.c.id.in_([row["id"] for row in rows]))).scalars())
    new = {row["id"]: row for row in rows if row["id"] not in known}
    if new:
        insert = postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
        connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]), list(new.values()))
    return len(new)


def _set(store: Store, by: Person, item: str, action: str, detail: dict[str, object], **values: object) -> None:
    table = tables.items
    with store.writer() as writer:
        if not writer.connection.execute(update(table).where(table.c.id == item).values(**values)).rowcount:
            raise DataError(f'there is no item "{item}"', fix="Look at the list of items again.")
        audit.record(writer.connection, by.pseudonym, action, item, detail)


def _refresh_overlap(store: Store, settings: LabelSettings) -> None:
    table = tables.items
    plain = (table.c.purpose == "normal", table.c.overlap.is_(None), table.c.wanted != settings.overlap)
    with store.writer() as writer:
        values = {"wanted": settings.overlap, "queue": _queue(table.c.taken, literal(settings.overlap))}
        writer.connection.execute(update(table).where(*plain).values(**values))


def _prompts_without_items(connection: Connection, *, after: int) -> list[Row[tuple[int, str]]]:
    # What users of a served model wrote is not shown to raters: they were told that it is kept for training.
    prompts, items, feedback = tables.prompts, tables.items, tables.feedback
    asked = (~exists().where(table.c.prompt_id == prompts.c.id) for table in (items, feedback))
    query = select(prompts.c.number, prompts.c.id).where(prompts.c.number > after, *asked)
    return list(connection.execute(query.order_by(prompts.c.number).limit(CHUNK)))


def _picks(connection: Connection, prompt_ids: list[str], settings: LabelSettings) -> Iterable[Pick | None]:
    candidates, judgements = tables.candidates, tables.judgements
    of: dict[str, list[str]] = {prompt: [] for prompt in prompt_ids}
    query = select(candidates.c.prompt_id, candidates.c.id).where(candidates.c.prompt_id.in_(prompt_ids)).order_by(candidates.c.number)
    for row in connection.execute(query):
        of[row.prompt_id].append(row.id)
    judged = set(connection.execute(select(judgements.c.prompt_id).where(judgements.c.prompt_id.in_(prompt_ids)).distinct()).scalars())
    for prompt, found in of.items():
        yield _pick(prompt, tuple(found), JUDGED_BEFORE if prompt in judged else 0, settings)


def _pick(prompt_id: str, found: tuple[str, ...], priority: int, settings: LabelSettings) -> Pick | None:
    if not 2 <= len(found) <= MAX_CANDIDATES:
        return None
    if settings.task != "pair" or len(found) == 2:
        return Pick(prompt_id, found, priority=priority)
    pairs = list(combinations(found, 2))
    drawn = hashlib.sha256(f"pair {prompt_id}".encode()).digest()
    return Pick(prompt_id, pairs[int.from_bytes(drawn) % len(pairs)], picked_probability=1 / len(pairs), priority=priority)
