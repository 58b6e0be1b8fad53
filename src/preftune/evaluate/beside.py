"""Two reports beside each other: what differs, the figures of both, their curves over each other, their answers to the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from preftune.evaluate import findings, panels
from preftune.evaluate.answers import Side, choose, side, text_of
from preftune.evaluate.diffs import word_diff
from preftune.evaluate.sources import Sources, as_text
from preftune.evaluate.statistics import paired_difference
from preftune.evaluate.story import Measured, RunView, Story, measured, number, verdict_of
from preftune.evaluate.wording import NONE, Unit, duration, full, gib
from preftune.manifest import differences

FIGURES: dict[str, tuple[str, Unit]] = {
    "style": ("House conventions followed", "share"),
    "style_gain": ("Style won over the base", "points"),
    "win_rate": ("Win rate against the base, by the reward model", "share"),
    "passes_check": ("Answers that pass their check", "share"),
    "ends_by_itself": ("Answers that end by themselves", "share"),
    "mean_tokens": ("Tokens an answer", "tokens"),
    "reward": ("Score by the reward model", "score"),
    "kl": ("KL from the base, nats an answer", "nats"),
}
PAIRED = {"adherence": "House conventions followed", "reward": "Score by the reward model", "tokens": "Tokens an answer"}
PAIRED_UNITS: dict[str, Unit] = {"adherence": "points", "reward": "score", "tokens": "tokens"}
ENTRIES = ("kind", "inputs", "config", "versions", "hardware", "data")


@dataclass(frozen=True)
class Difference:
    """One entry of the manifests that differs; each value as text."""

    key: str
    first: str
    second: str


@dataclass(frozen=True)
class Figure:
    """One figure of both, each as HTML. paired: the second less the first on the same requests, with its interval, in words."""

    name: str
    first: Markup
    second: Markup
    paired: str = ""


@dataclass(frozen=True)
class Card:
    """One request with both answers."""

    id: str
    why: str
    prompt: str
    note: str
    first: Side
    second: Side


def contents(first: Story, second: Story) -> dict[str, Any]:
    """Return what the page shows."""
    stories = (first, second)
    sources = (Sources(first, prefix="a-"), Sources(second, prefix="b-"))
    labels = _labels(first, second)
    mains = tuple(_main(story) for story in stories)
    return {
        "stories": stories,
        "labels": labels,
        "verdicts": [findings.verdict(story, source) for story, source in zip(stories, sources, strict=True)],
        "warnings": [findings.warnings(story, source) for story, source in zip(stories, sources, strict=True)],
        "differences": _differences(first, second, mains),
        "figures": [*_figures(stories, sources), *_of_runs(stories, sources, mains)],
        "panels": _panels(stories, mains),
        "cards": _cards(first, second, labels),
        "files": [file for source in sources for file in source.files],
        "owners": [label for label, source in zip(labels, sources, strict=True) for _ in source.files],
    }


def _labels(first: Story, second: Story) -> tuple[str, str]:
    """Return how the two are called: A and B, and what each speaks of."""
    return f"A: {_called(first)}", f"B: {_called(second)}"


def _called(story: Story) -> str:
    if story.headline and not story.summarised:
        return story.labels[story.headline]
    return story.title


def _main(story: Story) -> str | None:
    """Return the run that a story speaks of: that of the model it shows first, else its last one."""
    if story.headline in story.runs:
        return story.headline
    return story.ordered_runs[-1] if story.runs else None


def _differences(first: Story, second: Story, mains: tuple[str | None, ...]) -> list[Difference]:
    one, two = (_manifest(story, main) for story, main in zip((first, second), mains, strict=True))
    return [Difference(key, _shown(a), _shown(b)) for key, (a, b) in differences(one, two).items()]


def _manifest(story: Story, main: str | None) -> dict[str, Any]:
    manifest = story.runs[main].manifest if main else next(iter(story.reports.values()), {})
    return {key: manifest[key] for key in ENTRIES if key in manifest}


def _shown(value: Any) -> str:
    return NONE if value is None else as_text(value)


def _figures(stories: tuple[Story, Story], sources: tuple[Sources, Sources]) -> list[Figure]:
    heads = [story.headline for story in stories]
    if None in heads:
        return []
    found = [story.evaluations[head or ""] for story, head in zip(stories, heads, strict=True)]
    paired = {PAIRED[field]: told for field in PAIRED if (told := _paired(found[0], found[1], field))}
    rows = []
    for key, (name, unit) in FIGURES.items():
        values = [measured(evaluation.get(key)) for evaluation in found]
        if any(values):
            cells = [
                source.value(value, unit, f"evaluation-{head}", key) for source, value, head in zip(sources, values, heads, strict=True)
            ]
            rows.append(Figure(name, cells[0], cells[1], paired.get(name, "")))
    kept = [Markup("{}").format(verdict_of(evaluation) or NONE) for evaluation in found]
    return [*rows, Figure("Retention", kept[0], kept[1])]


def _paired(first: dict[str, Any], second: dict[str, Any], field: str) -> str:
    one, two = ({str(row["id"]): number(row.get(field)) for row in evaluation.get("answers", [])} for evaluation in (first, second))
    pairs = [(a, b) for key in sorted(one.keys() & two.keys()) if (a := one[key]) is not None and (b := two[key]) is not None]
    if len(pairs) < 2:
        return ""
    difference = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    value = Measured(difference.value, difference.low, difference.high, difference.n)
    said = "they cannot be told apart" if difference.low <= 0 <= difference.high else "they differ"
    return f"{full(value, PAIRED_UNITS[field])}: {said}"


def _of_runs(stories: tuple[Story, Story], sources: tuple[Sources, Sources], mains: tuple[str | None, ...]) -> list[Figure]:
    """Return what training took, and of reward models how good they are."""
    if None in mains:
        return []
    runs = [story.runs[main or ""].manifest for story, main in zip(stories, mains, strict=True)]
    held_out = [_held_out(run) for run in runs]
    rows = [
        ("Training time", [duration(number(run.get("seconds"))) for run in runs], "seconds"),
        ("Peak memory", [gib(number(run.get("peak_memory_gib"))) for run in runs], "peak_memory_gib"),
        *([("Held-out pairs told apart", [full(value, "share") for value in held_out], "held_out.accuracy")] if any(held_out) else []),
    ]
    told = []
    for name, texts, key in rows:
        cells = [source.cite(text, f"run-{main}", key) for source, text, main in zip(sources, texts, mains, strict=True)]
        told.append(Figure(name, cells[0], cells[1]))
    return told


def _held_out(manifest: dict[str, Any]) -> Measured | None:
    told = manifest.get("held_out", {})
    value, ends, n = number(told.get("accuracy")), told.get("accuracy_interval") or (None, None), number(told.get("n"))
    return Measured(value, number(ends[0]), number(ends[1]), int(n) if n is not None else None) if value is not None else None


def _panels(stories: tuple[Story, Story], mains: tuple[str | None, ...]) -> list[panels.Panel]:
    """Return the panels of both stages, each once: with the lines of both runs where both have it in one unit, else named after its run."""
    runs = {letter: story.runs[main] for letter, story, main in zip("AB", stories, mains, strict=True) if main}
    kinds = {letter: story.kind(main) for letter, story, main in zip("AB", stories, mains, strict=True) if main}
    plans: dict[tuple[str, str], tuple[panels.Plan, dict[str, RunView]]] = {}
    for letter, kind in kinds.items():
        for plan in panels.plans_of(kind, list(runs.values())):
            if any(runs[letter].series(key)[1] for key in plan.metrics):
                plans.setdefault((plan.title, plan.unit), (plan, {}))[1][letter] = runs[letter]
    drawn = []
    for place, (plan, own) in enumerate(plans.values()):
        alone = len(own) == 1 and len(runs) > 1
        named = replace(plan, title=f"{plan.title} of {next(iter(own))}") if alone else plan
        drawn.append(panels.drawn_panel(f"beside-{place}", own, named))
    return [panel for panel in drawn if panel]


def _cards(first: Story, second: Story, labels: tuple[str, str]) -> list[Card]:
    """Return the requests that both answered, chosen as the single report chooses them: by how adherence differs."""
    if first.headline is None or second.headline is None:
        return []
    one, two = ({str(row.get("id")): row for row in s.evaluations[s.headline or ""].get("answers", [])} for s in (first, second))
    both = [name for name in one if name in two]
    cards = []
    for name, why in choose([(one[name], two[name]) for name in both]).items():
        diff = word_diff(text_of(one[name]), text_of(two[name]))
        sides = (side(labels[0], one[name], diff.before), side(labels[1], two[name], diff.after))
        cards.append(Card(name, why, str(one[name].get("prompt", "")), diff.note, *sides))
    return cards
