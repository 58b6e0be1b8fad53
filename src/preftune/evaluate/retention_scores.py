"""What a retention measure holds, item by item: two of them, of the same items, are compared by `verdict.py`. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from preftune.errors import DataError

LONGEST_SAID = 2000  # characters of a text that is kept to be read


@dataclass(frozen=True)
class FactScore:
    """How one fact was answered; margin: by how many nats the right choice is worth more than the best wrong one.

    asked, right, said: the question, its right choice and the one that the model holds for likeliest, to be read.
    """

    id: str
    kind: str
    cluster: str
    correct: bool
    margin: float
    asked: str = ""
    right: str = ""
    said: str = ""


@dataclass(frozen=True)
class TextScore:
    """How many bits the tokens of a passage take (all but the first), and how many bytes these cover."""

    id: str
    kind: str
    bits: float
    bytes: int


@dataclass(frozen=True)
class FunctionScore:
    """Whether the code of an answer passed the task's test, and whether the answer ended by itself. asked, said: to be read."""

    id: str
    passed: bool
    finished: bool
    asked: str = ""
    said: str = ""


@dataclass(frozen=True)
class ItemScore:
    """The score of one item of a task, from 0 to 1. cluster: items that stand or fall together have one; "" = the item alone.

    asked, right, said: the question, its right answer and the model's, to be read.
    """

    id: str
    score: float
    cluster: str = ""
    asked: str = ""
    right: str = ""
    said: str = ""


@dataclass(frozen=True)
class TaskMeasure:
    """A task of the team's own. margin: what may be lost, set beforehand. set_aside: bad rows of its file, each with line and reason.

    also: what else was measured, such as the other of acc and acc_norm; it is shown and not judged.
    """

    name: str
    kind: str
    unit: str
    margin: float
    gated: bool
    items: tuple[ItemScore, ...]
    set_aside: tuple[str, ...] = ()
    also: tuple[tuple[str, float], ...] = ()

    @property
    def value(self) -> float:
        """The mean score."""
        return sum(item.score for item in self.items) / len(self.items)


@dataclass(frozen=True)
class RetentionMeasure:
    """What a model knows, item by item; two of them are compared. python: the minor version that gave the facts."""

    facts: tuple[FactScore, ...]
    texts: tuple[TextScore, ...]
    functions: tuple[FunctionScore, ...]
    seed: int
    python: str
    own: tuple[TaskMeasure, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RetentionMeasure:
        """Return the measure that `to_json` wrote. Raises DataError where it is something else."""
        try:
            return cls(
                facts=tuple(FactScore(**row) for row in value["facts"]),
                texts=tuple(TextScore(**row) for row in value["texts"]),
                functions=tuple(FunctionScore(**row) for row in value["functions"]),
                seed=value["seed"],
                python=value["python"],
                own=tuple(_own(row) for row in value.get("own", ())),
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"this is no retention measure ({error!r})", "retention", "Measure the model anew.") from error


def _own(row: dict[str, Any]) -> TaskMeasure:
    lists = {"items": tuple(ItemScore(**item) for item in row["items"]), "set_aside": tuple(row["set_aside"])}
    return TaskMeasure(**{**row, **lists, "also": tuple((name, value) for name, value in row["also"])})
