"""The items that flipped, to be read: what was asked, what is right, what was said before and after. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.progress import counted

FLIPPED = "flipped.md"


@dataclass(frozen=True)
class Flipped:
    """An item that scored otherwise after than before. right: the right answer, "" where there is none to show."""

    task: str
    id: str
    gained: bool
    asked: str
    right: str
    before: str
    after: str


def flipped_items(before: Mapping[str, Any], after: Mapping[str, Any], verdict: Mapping[str, Any]) -> list[Flipped]:
    """Return the flipped items of a verdict with their texts, from the two measures (as JSON), lost ones first, task by task."""
    sides = [dict(_items(measure)) for measure in (before, after)]
    found = []
    for flip in verdict["flipped"]:
        key = flip["task"], flip["id"]
        first, then = (side.get(key, {}) for side in sides)
        texts = (str(first.get("asked", "")), str(first.get("right", "")), str(first.get("said", "")), str(then.get("said", "")))
        found.append(Flipped(flip["task"], flip["id"], flip["change"] == "gained", *texts))
    return sorted(found, key=lambda flip: flip.gained)


def _items(measure: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    named = [("facts", measure["facts"]), ("functions", measure["functions"])]
    for task, rows in (*named, *((own["name"], own["items"]) for own in measure.get("own", ()))):
        for row in rows:
            yield (task, row["id"]), row


def flipped_page(items: Sequence[Flipped], model: str) -> str:
    """Return a Markdown page of the flipped items."""
    lost = sum(not item.gained for item in items)
    parts = [
        f"# What {model} answers otherwise than its base",
        f"{counted(lost, 'items were right before and are wrong now')}, {len(items) - lost:,} the other way round. Some flip by chance in "
        "both directions; whether more was lost than the margin allows is what the verdict says. Look here for what they have in common.",
    ]
    for gained, head in ((False, "Lost"), (True, "Gained")):
        mine = [item for item in items if item.gained is gained]
        if mine:
            parts.append(f"## {head}: {len(mine):,}")
            parts += [_entry(item) for item in mine]
    return "\n\n".join(parts) + "\n"


def _entry(item: Flipped) -> str:
    rows = (("asked", item.asked), ("right", item.right), ("before", item.before), ("after", item.after))
    return "\n\n".join([f"### {item.task}: {item.id}", *(f"{name}:\n\n{_block(text)}" for name, text in rows if text)])


def _block(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())  # indented: a text may hold fences of its own


def retention_lines(folder: Path, evaluation: Mapping[str, Any]) -> list[str]:
    """Return what a terminal says of an evaluation's retention: a line a task, the verdict, and where the flipped items are."""
    verdict = (evaluation.get("retention") or {}).get("verdict")
    if verdict is None:
        return []
    flipped = verdict["flipped"]
    lost = sum(flip["change"] == "lost" for flip in flipped)
    told = f"{counted(lost, 'items')} lost, {len(flipped) - lost:,} gained: read {folder / FLIPPED}" if flipped else "no item flipped"
    return [f"retention: {verdict['overall']}", *(f"  {_line(task)}" for task in verdict["tasks"]), f"  {told}"]


def _line(task: Mapping[str, Any]) -> str:
    unit = "%" if str(task["unit"]).startswith("relative") else "points"
    change = f"{task['name']}: {task['before']:.4f} → {task['after']:.4f}, {100 * task['difference']:+.2f} {unit} (n = {task['n']:,})"
    if not task["gated"]:
        return f"{change}, {100 * task['low']:+.2f} to {100 * task['high']:+.2f}; reported, not judged"
    judged = f"{change}, at worst {100 * task['lower']:+.2f}, margin {100 * task['margin']:.2f}: {task['verdict']}"
    return f"{judged}; about {task['needed']:,} items would prove it" if task.get("needed") and task["verdict"] == "not proved" else judged
