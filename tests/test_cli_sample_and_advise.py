"""`preftune sample` and `preftune advise` as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from tests.remote_server import choices, send, serving

from preftune import _cli_advise, _cli_sample
from preftune._cli_output import run_app
from preftune.data import remote
from preftune.data.store import Store
from preftune.project import init_project
from preftune.records import Message, Prompt


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "BACK_OFF_SECONDS", 0.0)
    init_project(Path())
    with Store.open("store.db") as store:
        store.add(prompts=[Prompt(messages=(Message(role="user", content=f"{word}?"),)) for word in ("one", "two")])


def run(capsys, app: typer.Typer, *words: str) -> tuple[int, str, str]:
    """Run a command in this process and return (exit code, stdout, stderr)."""
    try:
        code = run_app(app, list(words), debug=False)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    return code, *capsys.readouterr()


def answer(handler, request) -> None:
    send(handler, choices(f"{request.body['messages'][-1]['content']} {request.body['seed']}"))


def test_candidates_come_from_a_url_and_the_result_is_json(capsys):
    with serving(answer) as server:
        words = ["--url", f"http://127.0.0.1:{server.port}/v1", "--url-model", "m", "--allow-private", "-k", "2", "--json"]
        code, out, err = run(capsys, _cli_sample.app, *words)
        assert code == 0
        assert json.loads(out)["new"] == 4
        assert "sampling" in err
        code, out, _ = run(capsys, _cli_sample.app, *words[:-1])
    assert code == 0
    assert out.splitlines()[:2] == ["2 prompts: 0 new candidates", "  2 prompts had all their candidates already"]
    assert out.splitlines()[-1] == "Next: preftune label"


def test_endpoints_are_those_of_the_project_file(capsys):
    with serving(answer) as server:
        endpoint = f"{{name: local, url: 'http://127.0.0.1:{server.port}/v1', model: m, allow_private: true}}"
        Path("preftune.yaml").write_text(f"endpoints: [{endpoint}]\n", encoding="utf-8")
        words = ["--endpoint", "local", "--store", "store.db", "-k", "1", "--temperature", "0.2", "--greedy"]
        code, out, _ = run(capsys, _cli_sample.app, *words)
        assert (code, server.seen[0].body["temperature"]) == (0, 0.0)
        assert "2 prompts: 2 new candidates (2 from m)" in out
    code, _, err = run(capsys, _cli_sample.app, "--endpoint", "other")
    assert code == 2
    assert 'preftune.yaml: there is no endpoint "other". Known are local.' in err


def test_an_address_on_this_machine_needs_the_word(capsys):
    code, _, err = run(capsys, _cli_sample.app, "--url", "http://127.0.0.1:1/v1", "--url-model", "m")
    assert code == 2
    assert "allow_private" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is no model to ask"),
        (["--url", "http://x/v1"], "--url needs the model's name"),
        (["--key-env", "K"], "say something of a --url"),
        (["--url", "ftp://x", "--url-model", "m"], "begins with http:// or https://"),
        (["--url", "https://u:hunter2@x", "--url-model", "m"], "holds a name or a password"),
    ],
)
def test_wrong_use_is_a_sentence_and_exit_code_2(capsys, words, said):
    code, _, err = run(capsys, _cli_sample.app, *words)
    assert code == 2
    assert said in err
    assert "hunter2" not in err


def test_what_failed_is_told_and_leaves_with_1(capsys):
    def refuses_two(handler, request):
        answer(handler, request) if "one" in request.body["messages"][-1]["content"] else send(handler, b"filtered", 400)

    with serving(refuses_two) as server:
        words = ["--url", f"http://127.0.0.1:{server.port}/v1", "--url-model", "m", "--allow-private", "-k", "1"]
        code, out, err = run(capsys, _cli_sample.app, *words)
    assert code == 1
    assert "1 new candidate " in out
    assert "1 answer failed. What there is, is stored" in err


def test_advice_is_told_in_lines_and_in_json(capsys):
    code, out, _ = run(capsys, _cli_advise.app)
    assert code == 0
    assert out.startswith("Advice: collect more.\nBecause:\n")
    assert out.splitlines()[-1] == "Next: preftune sample, then preftune label"
    code, out, _ = run(capsys, _cli_advise.app, "--json")
    assert json.loads(out)["answer"] == "collect more"


def test_guidelines_that_are_not_there_are_a_sentence(capsys):
    code, _, err = run(capsys, _cli_advise.app, "--guidelines", "nowhere.md")
    assert code == 2
    assert "nowhere.md: the guidelines cannot be read (No such file or directory)" in err


@pytest.mark.parametrize(("app", "name"), [(_cli_sample.app, "sample"), (_cli_advise.app, "advise")])
def test_the_help_has_an_example_and_fits_a_screen(capsys, app, name):
    plain = typer.Typer(rich_markup_mode=None, context_settings={"max_content_width": 100})
    plain.registered_commands = app.registered_commands
    code, out, _ = run(capsys, plain, "--help")
    assert code == 0
    assert f"Example: preftune {name}" in " ".join(out.split())
    assert len(out.splitlines()) <= 40
