"""`preftune snapshot` at the command line: its options reach the function, and what makes no sense is refused with a sentence."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from preftune._cli_output import run_app
from preftune._cli_snapshot import NEW_OBJECTS, app
from preftune.data.importing import import_preferences
from preftune.data.snapshot import load_snapshot
from preftune.errors import DataError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a store of 30 pairs, every third of another kind, judged by two raters."""
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = []
    for n in range(30):
        row = {"prompt": f"Task {n}: sort list {n * 7919}.", "chosen": "good", "rejected": "bad", "kind": "rare" if n % 3 == 0 else "usual"}
        rows += [row | {"rater": "ann", "strength": n % 4}]
        rows += [row | {"rater": "bob", "chosen": "bad", "rejected": "good"}] if n < 10 else []
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_preferences(Path("rows.jsonl"), Path("store.db"))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run_app(app, ["--store", "store.db", *words], debug=False)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def pairs(capsys: pytest.CaptureFixture[str], *words: str) -> list[tuple[str, str]]:
    code, out, err = run(capsys, "--held-out", "0.3", "--json", *words)
    assert code == 0, err
    found = load_snapshot(Path(json.loads(out)["path"]))
    return [(p.messages[0].content, p.chosen) for p in [*found.train, *found.held_out]]


def test_the_result_says_where_it_is_and_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--held-out", "0.3")
    assert code == 0
    assert out.startswith("snapshots/")
    assert "Next: preftune train dpo data=snapshots/" in out
    assert run(capsys, "--held-out", "0.3")[1].startswith("already there: snapshots/")


def test_each_option_keeps_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(pairs(capsys)) == 20  # ten are evenly split
    assert len(pairs(capsys, "--rater", "ann")) == 30
    assert {chosen for _, chosen in pairs(capsys, "--rater", "bob")} == {"bad"}
    assert len(pairs(capsys, "--rater", "ann", "--rater", "bob", "--kind", "rare")) == 6
    assert len(pairs(capsys, "--min-strength", "2", "--rater", "ann")) == 14
    assert len(pairs(capsys, "--min-agreement", "0.6")) == 20
    assert len(pairs(capsys, "--max-characters", "29", "--rater", "ann")) == sum(
        len(f"Task {n}: sort list {n * 7919}.") <= 25 for n in range(30)
    )
    assert len(pairs(capsys, "--since", "2020-01-01", "--until", "2100-01-01T00:00:00")) == 20
    Path("weights.yaml").write_text("bob: 2\n")
    weighted = pairs(capsys, "--aggregate", "weighted", "--rater-weights", "weights.yaml")
    assert len(weighted) == 30
    assert sum(chosen == "bad" for _, chosen in weighted) == 10


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--max-tokens", "9"], "snapshot: max_tokens and tokenizer belong together. Give both or none."),
        (["--since", "2026-02-01", "--until", "2026-01-01"], "is not before until"),
        (["--unbiased-only"], "everything that could be learned was left out (40 by not picked at random). Filter less."),
        (["--source", "nobody"], "everything that could be learned was left out (20 by source). Filter less."),
        (["--aggregate", "weighted"], 'Weights go with "weighted" alone.'),
        (["--aggregate", "dawid-skene"], "1.33 raters an item on average (20 of 30 have one), it needs 3."),
    ],
)
def test_what_makes_no_sense_or_leaves_nothing_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert sentence in err
    assert not Path("snapshots").exists()


def test_python_looks_for_cycles_rarely_while_a_snapshot_is_made_and_as_before_after_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = gc.get_threshold()
    during: list[int] = []

    def freeze(*_: object, **__: object) -> Path:
        during.append(gc.get_threshold()[0])
        raise DataError("nothing", "here", "Stop.")

    monkeypatch.setattr("preftune.data.snapshot.snapshot", freeze)
    assert "Stop." in run(capsys)[2]
    assert (during, gc.get_threshold()) == ([NEW_OBJECTS], before)
