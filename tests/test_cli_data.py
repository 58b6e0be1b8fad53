"""The commands import and export: what they print, and with which code they leave."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from preftune._cli_data import app
from preftune._cli_output import run_app
from preftune.data.formats import FORMATS

PAIR = {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "What?"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(json.dumps(PAIR) + "\n")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run_app(app, words, debug=False)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_dry_run_shows_counts_direction_examples_and_what_would_be_set_aside(capsys):
    Path("rows.jsonl").write_text(json.dumps(PAIR) + "\n" + json.dumps({**PAIR, "rejected": "Hello!"}) + "\n")
    code, out, err = run(capsys, "import", "rows.jsonl", "--store", "s.db", "--dry-run")
    assert code == 2
    assert out.splitlines() == [
        "rows.jsonl (own): 2 rows, 1 would be new, 0 already there",
        "  1 new prompt",
        "  2 new candidates",
        "  1 new judgement",
        "  1 set aside: there is nothing to learn from two equal answers (line 2)",
        "Direction: chosen over rejected; a ranking is best first.",
        "The first of them, so that you can see that better and worse are the right way round:",
        "line 1, user: Say hello.",
        "  better: Hello!",
        "  worse: What?",
        "Nothing was stored (--dry-run).",
    ]
    assert err == "1 of 2 rows were set aside; the others were read.\n"
    assert not Path("s.db").exists()


def test_what_was_stored_of_one_file_is_told_where_the_next_cannot_be_read(capsys):
    Path("odd.jsonl").write_text(json.dumps({"ask": "Say hello.", "good": "Hello!"}) + "\n")
    code, out, err = run(capsys, "import", "rows.jsonl", "odd.jsonl", "--store", "s.db")
    assert (code, out.splitlines()[0]) == (2, "rows.jsonl (own): 1 row, 1 new, 0 already there")
    assert "has rows with the keys ask, good. Say which key is which: --map prompt=KEY --map chosen=KEY --map rejected=KEY" in err
    code, out, _ = run(capsys, "import", "odd.jsonl", "--store", "s.db", "--map", "prompt=ask", "--map", "completion=good")
    assert (code, "  1 new demonstration" in out) == (0, True)


def test_prompts_alone_are_shown_too_and_ask_for_answers(capsys):
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "Say bye."}) + "\n")
    code, out, _ = run(capsys, "import", "prompts.jsonl", "--store", "s.db")
    assert (code, out.splitlines()[-3:]) == (
        0,
        ["line 1, user: Say bye.", "  (a prompt alone)", "Next: preftune sample, then preftune label"],
    )
    _, out, _ = run(capsys, "import", "prompts.jsonl", "rows.jsonl", "--store", "s.db")
    assert out.splitlines()[-1] == "Next: preftune check"


def test_a_table_is_imported_by_its_map(capsys):
    Path("table.csv").write_text("Q,good,bad\nAsk.,one,two\n")
    words = ("import", "table.csv", "--store", "s.db", "--json")
    code, _, err = run(capsys, *words)
    assert (code, "--map prompt=COLUMN" in err) == (2, True)
    code, out, _ = run(capsys, *words, "--map", "prompt=Q", "--map", "chosen=good rejected=bad")
    told = json.loads(out)["imports"][0]
    assert (code, told["new"], told["format"]) == (0, 1, "columns")
    assert told["columns"] == {"prompt": "Q", "chosen": "good", "rejected": "bad"}
    code, _, err = run(capsys, *words, "--map", "prompt")
    assert (code, 'Error: --map "prompt" is not KEY=COLUMN' in err) == (2, True)


def test_the_cap_on_unpacking_is_a_setting(capsys):
    Path("rows.jsonl.gz").write_bytes(gzip.compress((json.dumps(PAIR | {"prompt": "Say hello. " * 100}) + "\n").encode() * 1_000))
    code, _, err = run(capsys, "import", "rows.jsonl.gz", "--store", "s.db", "--max-unpacked-gib", "0.001")
    assert (code, "unpacks to more than 0.001 GiB" in err) == (2, True)
    assert run(capsys, "import", "rows.jsonl.gz", "--store", "s.db")[0] == 0


def test_an_export_tells_what_it_holds_and_imports_again(capsys):
    run(capsys, "import", "rows.jsonl", "--store", "s.db")
    code, out, _ = run(capsys, "export", "own.jsonl", "--store", "s.db")
    assert (code, out) == (0, "own.jsonl: 1 row (own) from 1 judgement\n")
    code, out, _ = run(capsys, "import", "own.jsonl", "--store", "s.db", "--json")
    assert (code, json.loads(out)["imports"][0]["already_there"]) == (0, 1)
    code, out, _ = run(capsys, "export", "pairs.jsonl", "--format", "trl", "--store", "s.db", "--json")
    assert (code, json.loads(out)["rows"]) == (0, 1)
    code, _, err = run(capsys, "export", "x", "--format", "excel", "--store", "s.db")
    assert (code, err) == (2, 'Error: s.db: there is no export "excel". Known are own, trl, trl-unpaired, openai, llamafactory, argilla.\n')
    assert not Path("x").exists()


def test_the_page_on_formats_names_every_format(repository: Path):
    text = (repository / "docs" / "formats.md").read_text(encoding="utf-8")
    assert [name for name in FORMATS if f"\n| `{name}` |" not in text] == []
