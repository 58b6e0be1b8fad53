"""The report: one HTML file that tells what happened, shows it, and says where each number comes from.

    write_report(story_of(Path("demo")), Path("demo/report.html"))

It needs no network, follows light and dark, prints, and fits a narrow screen. All text of models and users is escaped, and a content
security policy lets no script in but our own small one, named by its hash: it sorts tables, and all is there without it.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from preftune.data.pages import write_html
from preftune.evaluate import answers, beside, comparison, findings, panels, reward_panels, tables
from preftune.evaluate.sources import Sources
from preftune.evaluate.story import RL, RunView, Story, story_of
from preftune.evaluate.wording import listed

__all__ = ["RunView", "Story", "story_of", "write_beside", "write_report"]


def write_report(story: Story, path: Path) -> Path:
    """Write the report to a file, whole or not at all, and return its path."""
    return write_html(path, "report.html.j2", "preftune.evaluate", **_contents(story), **_script())


def write_beside(first: Story, second: Story, path: Path) -> Path:
    """Write two stories beside each other to a file: what differs, their figures, their curves over each other, their answers."""
    return write_html(path, "beside.html.j2", "preftune.evaluate", **beside.contents(first, second), **_script())


def _script() -> dict[str, Markup]:
    """Return the one script of a page, and its hash for the content security policy."""
    text = (resources.files("preftune.evaluate") / "templates" / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return {"script": Markup(text), "script_hash": Markup(f"sha256-{digest}")}


def _pleased(story: Story) -> dict[str, str]:
    """Return who was trained on a reward model's word, as the start of a sentence and by name; empty where nobody was."""
    who = [story.labels[name].removesuffix(" (RLHF)") for name in story.methods if story.kind(name) in RL]
    return {"pleased": f"{listed(who)} {'was' if len(who) == 1 else 'were'}" if who else "", "pleased_who": listed(who)}


def _contents(story: Story) -> dict[str, Any]:
    sources = Sources(story)
    style_plot, cost_plot = tables.overview(story)
    shown, rest = answers.cards(story) if story.evaluations else (answers.compared_cards(story), [])
    made = comparison.contrasts(story)
    return {
        "story": story,
        "labels": [label for name, label in story.labels.items() if name in story.evaluations],
        "headline": story.labels[story.headline] if story.headline else "",
        "verdict": findings.verdict(story, sources),
        "warnings": findings.warnings(story, sources),
        "healthy": findings.healthy(story),
        "refusals": {story.labels.get(name, name): why for name, why in findings.refusals(story).items()},
        "style_plot": style_plot,
        "cost_plot": cost_plot,
        "rows": comparison.rows(story, sources),
        **_pleased(story),
        "contrasts": [(comparison.style_sentence(c), _costs(story, sources, c, first=c is made[0])) for c in made],
        "conclusion": comparison.conclusion(story),
        "curves": panels.stage_curves(story),
        "sampled": answers.training_samples(story),
        "shown": shown,
        "rest": rest,
        "conventions": tables.style_rows(story, sources),
        "retention": tables.retention_tables(story, sources),
        "rewards": reward_panels.reward_views(story, sources),
        "results": tables.result_rows(story, sources),
        "gates": {story.labels.get(name, name): checks for name, checks in story.gates.items()},
        "methods_asked": len(story.methods) > 1,
        "facts": tables.data_facts(story, sources),
        "sources": sources,
    }


def _costs(story: Story, sources: Sources, made: comparison.Contrast, *, first: bool) -> list[Markup]:
    # Of the first two, and wherever RL is one of them: to say it of all pairs would be to say it twice.
    return comparison.cost_sentences(story, sources, made) if first or made.between[0] in RL else []
