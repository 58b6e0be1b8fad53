"""`preftune label`: who may reach it, who comes in first, and that it starts, serves and stops."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from preftune._cli_label import app
from preftune._cli_output import run_app
from preftune.data.store import Store
from preftune.errors import ConfigError, PreftuneError
from preftune.records import Prompt
from preftune.web import auth, serve
from preftune.web.settings import LabelSettings

COMMAND = [sys.executable, "-c", "from preftune._cli_label import app; app()"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "localhost", "::1", "[::1]"])
def test_this_machine_alone_needs_no_encryption(host: str) -> None:
    serve.check_exposure(host, behind_proxy=False, tls_cert=None, tls_key=None)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.0.2.1", "ranking.example.org", "", "127.0.0.1.example.org", "localhost.example.org"]
)
def test_to_be_reached_from_elsewhere_it_must_be_encrypted(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"could be read on the way\. Give --tls-cert and --tls-key, or put a proxy"):
        serve.check_exposure(host, behind_proxy=False, tls_cert=None, tls_key=None)
    serve.check_exposure(host, behind_proxy=True, tls_cert=None, tls_key=None)
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    serve.check_exposure(host, behind_proxy=False, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")


def test_half_of_tls_and_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a certificate and its key go together"):
        serve.check_exposure("0.0.0.0", behind_proxy=False, tls_cert=tmp_path, tls_key=None)
    with pytest.raises(ConfigError, match="there is no such file"):
        serve.check_exposure("0.0.0.0", behind_proxy=False, tls_cert=tmp_path / "c.pem", tls_key=tmp_path / "k.pem")


def test_a_wrong_use_is_one_sentence_and_makes_no_store(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_app(app, ["--host", "0.0.0.0"], debug=False) == 2
    assert capsys.readouterr().err.startswith("Error: --host 0.0.0.0: other machines would reach the app without encryption")
    Path("preftune.yaml").write_text("label: {overlap: many}")
    assert run_app(app, [], debug=False) == 2
    assert 'key "label.overlap" is "many"' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["preftune.yaml"]


def test_a_port_that_is_taken_and_an_address_that_is_elsewhere_are_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            PreftuneError, match=rf"127\.0\.0\.1:{port}: port {port} cannot be used \(address already in use\)\. Give another"
        ):
            serve.label(tmp_path / "s.db", LabelSettings(), port=port, say=print)
    with pytest.raises(PreftuneError, match="cannot be used"):
        serve.label(tmp_path / "s.db", LabelSettings(), host="192.0.2.1", behind_proxy=True, say=print)


# The first owner


@pytest.fixture
def start(store: Store) -> Callable[..., list[str]]:
    """Do what a start does to let an owner in, and return what is said."""

    def begin(owner: str | None = None, ask: Callable[[str], str] | None = None) -> list[str]:
        said: list[str] = []
        serve._let_owner_in(store, owner, ask, "http://127.0.0.1:8321", said.append)
        return said

    return begin


def test_the_first_start_says_a_link_by_which_the_first_owner_comes_in(store: Store, start: Callable[..., list[str]]) -> None:
    (line,) = start()
    found = re.search(r"within 72 hours\): http://127\.0\.0\.1:8321/invite/([\w-]+)$", line)
    assert found
    assert auth.accept_invitation(store, found[1], "Olga", "a few words in a row").role == "owner"
    assert start() == []


def test_a_named_owner_is_made_once_with_the_password_that_was_asked_for(store: Store, start: Callable[..., list[str]]) -> None:
    asked: list[str] = []

    def ask(name: str) -> str:
        asked.append(name)
        return "a few words in a row"

    assert start("Olga", ask) == ['"Olga" is an owner now.']
    assert start("olga", ask) == []
    assert asked == ["Olga"]
    assert auth.log_in(store, "Olga", "a few words in a row", address="")
    auth.add_person(store, "Ann", "a few words in a row", "rater")
    with pytest.raises(ConfigError, match='"Ann" is a rater'):
        start("Ann", ask)
    with pytest.raises(ConfigError, match=r'no owner "Otto" and nobody to ask for a password\. Start it in a terminal once'):
        start("Otto")


def test_the_password_is_asked_for_twice_and_not_shown(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune import _cli_label

    told: dict[str, Any] = {}
    monkeypatch.setattr(typer, "prompt", lambda text, **how: told.update(how, text=text) or "secret words")
    assert _cli_label._ask("Olga") == "secret words"
    assert told["hide_input"]
    assert told["confirmation_prompt"]
    assert "Olga" in told["text"]


# A real process


@pytest.fixture
def served(tmp_path: Path, ask: Callable[..., Prompt]) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A `preftune label` process on any free port, and what it said until it listened."""
    with Store.create(tmp_path / "store.db") as store:
        ask(store, "which?", "a", "b")
    process = subprocess.Popen(
        [*COMMAND, "--port", "0"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # as typed in a project's folder
    said = []
    assert process.stdout
    for line in process.stdout:
        said.append(line.strip())
        if line.startswith("Open "):
            break
    yield process, said
    process.kill()
    process.communicate()


def get(address: str) -> tuple[int, str]:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.status, answer.read().decode()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_starts_serves_and_stops(served: tuple[subprocess.Popen[str], list[str]], how: signal.Signals) -> None:
    process, said = served
    address = said[-1].split()[1]
    assert said[0].startswith("There is no owner yet. Become one")
    assert said[1] == "1 new item to judge."
    assert get(f"{address}/healthz")[0] == 200
    assert "password" in get(f"{address}/login")[1]
    process.send_signal(how)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "Stopped.\n", "")


@pytest.mark.slow
def test_a_header_without_end_is_not_read_without_end(served: tuple[subprocess.Popen[str], list[str]]) -> None:
    address = served[1][-1].split()[1]
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=10) as caller:
        caller.sendall(b"GET /login HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ")
        with pytest.raises(ConnectionError):  # hung up; 64 MiB are more than what the system keeps on its way
            for _ in range(1024):
                caller.sendall(b"a" * 2**16)
    assert get(f"{address}/healthz")[0] == 200


@pytest.mark.slow
def test_what_is_imported_while_it_runs_can_be_judged(tmp_path: Path, ask: Callable[..., Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "LOOK_EVERY_SECONDS", 0.05)
    with Store.create(tmp_path / "s.db") as store, serve._filling(store, LabelSettings()):
        ask(store, "which?", "a", "b")
        for _ in range(200):
            if _items(store):
                break
            time.sleep(0.02)
        assert _items(store) == 1


def _items(store: Store) -> int:
    from sqlalchemy import func, select

    from preftune.data import tables

    with store.reading() as connection:
        return int(connection.execute(select(func.count()).select_from(tables.items)).scalar_one())


@pytest.mark.slow
def test_the_process_loads_no_torch() -> None:
    code = "import sys, preftune.web.serve; print(sorted(m for m in ('torch', 'transformers', 'pandas', 'matplotlib') if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
