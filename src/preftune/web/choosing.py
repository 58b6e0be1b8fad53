"""Which item a rater gets next, and in which order its answers are shown.

Items that others have begun go first, so that what several are to judge is finished before more is begun; within that, by priority,
then in an order that means nothing. Gold items and retests come in between with the shares that the settings say; nothing a page
could show tells them apart. All of it runs inside the caller's write transaction.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite

from preftune.data import tables
from preftune.records import GOLD, RETEST, content_id
from preftune.web.items import unit
from preftune.web.persons import Person
from preftune.web.settings import LabelSettings

WINDOW = 200  # started items that are looked at before a fresh one is taken
RETEST_AFTER = 20  # judgements that lie between an item and its retest
OPEN = ("leased", "draft")


@dataclass(frozen=True)
class Empty:
    """There is nothing for this rater now. finished: they have judged all that they may; waiting: others hold the last slots, and may
    give some back; nothing: there are no items yet."""

    reason: Literal["finished", "waiting", "nothing"]


@dataclass(frozen=True)
class Choice:
    """An item and why it is given. barred: the rater may not judge it (their own answer, or known to them), and is not to see it."""

    item: Row[Any]
    purpose: str
    presentation: list[str]
    barred: bool = False


def choose(connection: Connection, person: Person, settings: LabelSettings) -> Choice | Empty | None:
    """Return what a rater gets next. The item is kept from other writers until the transaction ends.

    None where others are just taking what there is (in PostgreSQL): end the transaction and try again.
    """
    queues = _queues(connection, person)
    if not queues:
        return _why_empty(connection, person)
    item = next((row for queue in queues if (row := _locked_first(connection, person, queue)) is not None), None)
    if item is None:
        return None
    if _is_barred(connection, person, item):
        return Choice(item, "normal", [], barred=True)
    seed = secret(connection, "presentation")
    table = tables.assignments
    so_far = connection.execute(select(func.count()).where(table.c.person_id == person.id)).scalar_one()
    drawn = unit(seed, "check", person.id, so_far)
    check = None
    if drawn < settings.gold_share:
        check = _gold(connection, person)
    elif drawn < settings.gold_share + settings.retest_share:
        check = _retest(connection, person, unit(seed, "retest", person.id, so_far))
    if check is not None:
        purpose = GOLD if check.purpose == GOLD else RETEST
        return Choice(check, purpose, _order(connection, seed, check, person))
    return Choice(item, "normal", _order(connection, seed, item, person))


def secret(connection: Connection, name: str) -> str:
    """Return the store's secret of this name, drawn when it is first asked for (in a write transaction)."""
    table = tables.secrets
    query = select(table.c.value).where(table.c.name == name)
    found = connection.execute(query).scalar()
    if found is None:
        insert = postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
        connection.execute(insert.on_conflict_do_nothing(index_elements=["name"]), [{"name": name, "value": secrets.token_hex(16)}])
        found = connection.execute(query).scalar_one()
    return str(found)


def orders(count: int) -> list[list[int]]:
    """Return orders of `count` answers, a Williams design: over all rows each answer stands in each place, and behind each other
    answer, equally often. An even count needs as many rows, an odd one twice as many.

    Source: E. J. Williams, Experimental designs balanced for the estimation of residual effects of treatments, 1949.
    """
    zigzag = [0]
    for step in range(1, count):
        zigzag.append((count - step // 2) % count if step % 2 == 0 else (step + 1) // 2)
    rows = [[(place + shift) % count for place in zigzag] for shift in range(count)]
    return rows + [row[::-1] for row in rows] if count % 2 else rows


def _queues(connection: Connection, person: Person) -> list[tuple[str, int | None]]:
    # Returns the queues that hold something for this person, the one to take from first; each with how much of it to look at.
    started = connection.execute(first_of_queue(person.id, "started", window=WINDOW)).first()
    fresh = connection.execute(first_of_queue(person.id, "fresh")).first()
    if started is not None and (fresh is None or fresh.priority <= started.priority):
        return [("started", WINDOW), ("fresh", None)]
    if fresh is not None:
        return [("fresh", None), ("started", WINDOW)]
    rest = connection.execute(first_of_queue(person.id, "started")).first()
    return [("started", None)] if rest is not None else []


def _locked_first(connection: Connection, person: Person, queue: tuple[str, int | None]) -> Row[Any] | None:
    # Past what others are just taking: nobody waits for an item while holding another, so no two wait for each other.
    query = first_of_queue(person.id, queue[0], window=queue[1])
    return connection.execute(query.with_for_update(skip_locked=True, of=tables.items)).first()


def first_of_queue(person_id: str, queue: str, *, window: int | None = None) -> Select[Any]:
    """Return the query for the first item of a queue that a person has not met. window: look at the first so many alone."""
    table, mine = tables.items, tables.assignments
    query = select(table).where(table.c.queue == queue, ~exists().where(mine.c.item_id == table.c.id, mine.c.person_id == person_id))
    if window is not None:
        near = table.alias("near")
        first = select(near.c.id).where(near.c.queue == queue).order_by(near.c.priority.desc(), near.c.shuffle.desc()).limit(window)
        query = query.where(table.c.id.in_(first))
    return query.order_by(table.c.priority.desc(), table.c.shuffle.desc()).limit(1)


def _is_barred(connection: Connection, person: Person, item: Row[Any]) -> bool:
    items, assignments, candidates, judgements = tables.items, tables.assignments, tables.candidates, tables.judgements
    known = select(assignments.c.id).join(items, items.c.id == assignments.c.item_id)
    known = known.where(items.c.prompt_id == item.prompt_id, items.c.purpose == GOLD, assignments.c.person_id == person.id)
    if connection.execute(known.limit(1)).first():
        return True
    of_item = candidates.c.id.in_(item.candidate_ids)
    sources = (person.pseudonym, f"person:{person.pseudonym}")
    if connection.execute(select(candidates.c.id).where(of_item, candidates.c.source.in_(sources)).limit(1)).first():
        return True
    rewrites = select(judgements.c.rewrite).where(
        judgements.c.prompt_id == item.prompt_id, judgements.c.rater == person.pseudonym, judgements.c.rewrite.is_not(None)
    )
    return connection.execute(select(candidates.c.id).where(of_item, candidates.c.text.in_(rewrites)).limit(1)).first() is not None


def _gold(connection: Connection, person: Person) -> Row[Any] | None:
    table, other, mine = tables.items, tables.items.alias("other"), tables.assignments
    met = select(mine.c.id).join(other, other.c.id == mine.c.item_id)
    met = met.where(other.c.prompt_id == table.c.prompt_id, mine.c.person_id == person.id)
    query = select(table).where(table.c.queue == "gold", ~met.exists()).order_by(table.c.priority.desc(), table.c.shuffle.desc())
    return connection.execute(query.limit(1)).first()


def _retest(connection: Connection, person: Person, drawn: float) -> Row[Any] | None:
    table, again = tables.assignments, tables.assignments.alias("again")
    mine = (table.c.person_id == person.id, table.c.state == "submitted")
    newest = select(table.c.submitted).where(*mine).order_by(table.c.submitted.desc()).offset(RETEST_AFTER - 1).limit(1)
    before = connection.execute(newest).scalar()
    if before is None:
        return None
    met = exists().where(again.c.item_id == table.c.item_id, again.c.person_id == person.id, again.c.purpose == RETEST)
    old = select(table.c.item_id).where(*mine, table.c.purpose == "normal", table.c.submitted < before, ~met)
    count = connection.execute(select(func.count()).select_from(old.subquery())).scalar_one()
    if not count:
        return None
    picked = connection.execute(old.order_by(table.c.id).offset(int(drawn * count)).limit(1)).scalar_one()
    return connection.execute(select(tables.items).where(tables.items.c.id == picked)).first()


def _order(connection: Connection, seed: str, item: Row[Any], person: Person) -> list[str]:
    # The next rater of an item gets the next row; one who meets it again never the order that they had.
    table = tables.assignments
    query = select(table.c.person_id, table.c.presentation).where(table.c.item_id == item.id)
    given = [row for row in connection.execute(query) if row.presentation]  # empty where it was never shown
    had = [row.presentation for row in given if row.person_id == person.id]
    base = sorted(item.candidate_ids, key=lambda candidate: content_id(seed, item.id, candidate))
    rows = orders(len(base))
    shown = [[base[place] for place in rows[(len(given) + later) % len(rows)]] for later in range(len(rows))]
    return next(order for order in shown if order not in had)


def _why_empty(connection: Connection, person: Person) -> Empty:
    items, mine, theirs = tables.items, tables.assignments, tables.assignments.alias("theirs")
    to_judge = select(items.c.number).where(items.c.queue.in_(("fresh", "started", "closed")), items.c.purpose == "normal").limit(1)
    if not connection.execute(to_judge).first():
        return Empty("nothing")
    # One's own task whose lease ran out can be taken up again when a slot comes back.
    met = exists().where(mine.c.item_id == theirs.c.item_id, mine.c.person_id == person.id, mine.c.state.not_in(OPEN))
    held = select(theirs.c.id).where(theirs.c.state.in_(OPEN), theirs.c.holds.is_(True), theirs.c.person_id != person.id, ~met).limit(1)
    return Empty("waiting" if connection.execute(held).first() else "finished")
