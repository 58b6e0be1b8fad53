"""Which item a rater gets next, and in which order its answers are shown.

Items that others have begun go first, so that what several are to judge is finished before more is begun; within that, by priority,
then in an order that means nothing. Gold items and retests come in between with the shares that the settings say; nothing a page
could show tells them apart. All of it runs inside the caller's write transaction.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Row, Select, bindparam, exists, func, or_, select
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
    found = _candidates(connection, person)
    if not found:
        return _why_empty(connection, person)
    item = found[0].first if connection.dialect.name == "sqlite" else _locked_first(connection, person, found)
    if item is None:
        return None
    if _is_barred(connection, person, item):
        return Choice(item, "normal", [], barred=True)
    seed = secret(connection, "presentation")
    so_far = connection.execute(_so_far(), {"person": person.id}).scalar_one()
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


class _Queue(NamedTuple):
    name: str
    window: int | None  # how much of it is looked at; None: all
    first: Row[Any]  # the first item in it that the person has not met


def _candidates(connection: Connection, person: Person) -> list[_Queue]:
    # Returns the queues that hold something for this person, the one to take from first.
    def look(name: str, window: int | None) -> list[_Queue]:
        row = connection.execute(first_of_queue(name, window), {"person": person.id}).first()
        return [] if row is None else [_Queue(name, window, row)]

    found = [*look("started", WINDOW), *look("fresh", None)]
    found.sort(key=lambda queue: -queue.first.priority)  # of the same priority the started one stays first
    return found or look("started", None)


def _locked_first(connection: Connection, person: Person, queues: list[_Queue]) -> Row[Any] | None:
    # Past what others are just taking: nobody waits for an item while holding another, so no two wait for each other.
    for queue in queues:
        query = first_of_queue(queue.name, queue.window, locked=True)
        if (row := connection.execute(query, {"person": person.id}).first()) is not None:
            return row
    return None


# The statements are built once, as building one takes longer than running it.


@cache
def first_of_queue(name: str, window: int | None = None, *, locked: bool = False) -> Select[Any]:
    """Return the query for the first item of a queue that the person :person has not met.

    window: look at the first so many alone. locked: keep it from other writers, passing over those that others keep.
    """
    table, mine = tables.items, tables.assignments
    met = exists().where(mine.c.item_id == table.c.id, mine.c.person_id == bindparam("person"))
    query = select(table).where(table.c.queue == name, ~met)
    if window is not None:
        near = table.alias("near")
        first = select(near.c.id).where(near.c.queue == name).order_by(near.c.priority.desc(), near.c.shuffle.desc()).limit(window)
        query = query.where(table.c.id.in_(first))
    query = query.order_by(table.c.priority.desc(), table.c.shuffle.desc()).limit(1)
    return query.with_for_update(skip_locked=True, of=table) if locked else query


@cache
def _so_far() -> Select[Any]:
    return select(func.count()).select_from(tables.assignments).where(tables.assignments.c.person_id == bindparam("person"))


@cache
def _known_by_gold() -> Select[Any]:
    items, mine = tables.items, tables.assignments
    query = select(mine.c.id).join(items, items.c.id == mine.c.item_id)
    return query.where(items.c.prompt_id == bindparam("prompt"), items.c.purpose == GOLD, mine.c.person_id == bindparam("person")).limit(1)


@cache
def _own_answer() -> Select[Any]:
    candidates, judgements = tables.candidates, tables.judgements
    rewrites = select(judgements.c.rewrite).where(
        judgements.c.prompt_id == bindparam("prompt"), judgements.c.rater == bindparam("rater"), judgements.c.rewrite.is_not(None)
    )
    own = or_(candidates.c.source.in_((bindparam("rater"), bindparam("by_name"))), candidates.c.text.in_(rewrites))
    return select(candidates.c.id).where(candidates.c.id.in_(bindparam("ids", expanding=True)), own).limit(1)


@cache
def _shown_before() -> Select[Any]:
    table = tables.assignments
    return select(table.c.person_id, table.c.presentation).where(table.c.item_id == bindparam("item"))


def _is_barred(connection: Connection, person: Person, item: Row[Any]) -> bool:
    about = {"prompt": item.prompt_id, "person": person.id}
    if connection.execute(_known_by_gold(), about).first():
        return True
    about = {"prompt": item.prompt_id, "rater": person.pseudonym, "by_name": f"person:{person.pseudonym}"}
    return connection.execute(_own_answer(), {**about, "ids": item.candidate_ids}).first() is not None


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
    given = [row for row in connection.execute(_shown_before(), {"item": item.id}) if row.presentation]  # empty: never shown
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
