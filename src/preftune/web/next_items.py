"""Let the pairs that teach most be asked first: `data.selection` draws them, with the probability of each, and they go before the rest."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, select, update

from preftune.data import tables
from preftune.data.selection import next_pairs
from preftune.data.store import CHUNK, Store
from preftune.errors import DataError
from preftune.web import audit
from preftune.web.items import Pick, add_items
from preftune.web.persons import Person, demand_owner
from preftune.web.settings import LabelSettings

FIRST = 1  # the priority of drawn pairs: over the 0 of what lies in the queue, under what an owner raises by hand
MOST = 10_000
ACTION = "draw next pairs"


@dataclass(frozen=True)
class Drawn:
    """What a draw did: pairs made into items, items moved to the front (nobody had begun them), items begun and left as they are."""

    made: int
    moved: int
    begun: int


def last_draw(store: Store) -> Drawn | None:
    """Return what the last draw did, by the audit trail; None where there was none."""
    table = tables.audit
    query = select(table.c.detail).where(table.c.action == ACTION).order_by(table.c.number.desc()).limit(1)
    with store.reading() as connection:
        detail = connection.execute(query).scalar()
    return Drawn(detail["made"], detail["moved"], detail["begun"]) if detail else None


def ask_next(store: Store, by: Person, n: int, settings: LabelSettings) -> Drawn:
    """Draw about n pairs (see `data.selection`) and put them before the items in the queue.

    A pair that is an item already keeps its id, and takes the priority and the probability of this draw unless somebody has begun it.
    The draw's seed is the length of the audit trail, which notes it: so the same store would draw the same.
    Raises DataError where n is out of bounds or nothing is left to compare.
    """
    demand_owner(by)
    if not 1 <= n <= MOST:
        raise DataError(f"{n:,} pairs are out of bounds", fix=f"Draw 1 to {MOST:,}.")
    seed = audit.last_number(store)
    picks = [Pick(p.prompt_id, p.candidates, p.picked_by, p.probability, FIRST, "pair") for p in next_pairs(store, n, seed=seed)]
    table = tables.items
    front = (
        update(table)
        .where(table.c.id == bindparam("item"), table.c.queue == "fresh", table.c.purpose == "normal")
        .values(picked_by=bindparam("by"), picked_probability=bindparam("p"), priority=FIRST)
    )
    with store.writer() as writer:
        made, untouched = 0, 0
        for start in range(0, len(picks), CHUNK):
            part = picks[start : start + CHUNK]
            made += add_items(writer, part, settings)
            fresh = select(table.c.id).where(table.c.id.in_([pick.id for pick in part]), table.c.queue == "fresh")
            untouched += len(writer.connection.execute(fresh).all())
            writer.connection.execute(front, [{"item": pick.id, "by": pick.picked_by, "p": pick.picked_probability} for pick in part])
        drawn = Drawn(made, untouched - made, len(picks) - untouched)
        audit.record(writer.connection, by.pseudonym, ACTION, detail={"wanted": n, "seed": seed, **vars(drawn)})
    return drawn
