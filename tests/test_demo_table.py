"""The table of the demo's figures over several seeds."""

from __future__ import annotations

import json
import runpy


def test_the_table_has_each_seed_and_the_mean_and_range(tmp_path, repository):
    for name, value, verdict in (("a", 0.5, "kept"), ("b", 0.7, "not proved")):
        (tmp_path / name).mkdir()
        summary = {"seed": 3, "style": {"dpo": {"value": value, "n": 100}}, "retention": {"dpo": {"verdict": verdict, "proved": True}}}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    table = runpy.run_path(str(repository / "scripts" / "demo_table.py"))["table"]
    assert table([tmp_path / "a", tmp_path / "b"]).splitlines() == [
        "| figure | a | b | over the seeds |",
        "|---|---|---|---|",
        "| `style.dpo.value` | 0.5 | 0.7 | 0.6 (0.5 to 0.7) |",
        "| `retention.dpo.verdict` | kept | not proved | kept, not proved |",
    ]
