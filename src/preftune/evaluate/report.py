"""The report: one HTML file that tells what happened, shows it, and says where each number comes from.

    write_report(story_of(Path("demo")), Path("demo/report.html"))

It needs no network and no script, follows light and dark, prints, and fits a narrow screen. All text of models and users is escaped,
and a content security policy forbids whatever could still slip through.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preftune.data.pages import write_html
from preftune.evaluate import answers, comparison, findings, panels, tables
from preftune.evaluate.sources import Sources
from preftune.evaluate.story import LABELS, RunView, Story, story_of

__all__ = ["RunView", "Story", "story_of", "write_report"]


def write_report(story: Story, path: Path) -> Path:
    """Write the report to a file, whole or not at all, and return its path."""
    return write_html(path, "report.html.j2", "preftune.evaluate", **_contents(story))


def _contents(story: Story) -> dict[str, Any]:
    sources = Sources(story)
    style_plot, cost_plot = tables.overview(story)
    shown, rest = answers.cards(story)
    made = comparison.contrasts(story)
    return {
        "story": story,
        "labels": [LABELS[name] for name in LABELS if name in story.evaluations],
        "headline": LABELS[story.headline] if story.headline else "",
        "verdict": findings.verdict(story, sources),
        "warnings": findings.warnings(story, sources),
        "healthy": findings.healthy(story),
        "refusals": {LABELS.get(name, name): why for name, why in findings.refusals(story).items()},
        "style_plot": style_plot,
        "cost_plot": cost_plot,
        "rows": comparison.rows(story, sources),
        "contrasts": [(c, comparison.style_sentence(c), comparison.cost_sentences(story, sources, c)) for c in made],
        "conclusion": comparison.conclusion(story),
        "curves": panels.stage_curves(story),
        "sampled": answers.training_samples(story),
        "shown": shown,
        "rest": rest,
        "conventions": tables.style_rows(story, sources),
        "retention": tables.retention_tables(story, sources),
        "reward": tables.reward_view(story, sources),
        "facts": tables.data_facts(story, sources),
        "sources": sources,
    }
