import os
import sys
import time
from pathlib import Path

import pytest

from preftune.code import sandbox
from preftune.code.sandbox import SandboxResult, run_checks, run_python

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the batch runner forks")


@pytest.fixture(params=["forked", "alone"])
def run_one(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    """Run one (code, check): in the batch runner, and in the way of systems without fork."""
    if request.param == "alone":
        monkeypatch.delattr(os, "fork", raising=False)
    elif not hasattr(os, "fork"):
        pytest.skip("the batch runner forks")

    def run(code: str, check: str = "", seconds: float = 5.0, memory_mib: int = 512) -> SandboxResult:
        return run_checks([(code, check)], seconds=seconds, memory_mib=memory_mib)[0]

    return run


def test_a_right_answer_passes(run_one) -> None:
    assert run_one("def double(x):\n    return 2 * x", "assert double(2) == 4") == SandboxResult(True, "", "")


def test_a_wrong_answer_fails_with_the_line_of_the_check(run_one) -> None:
    result = run_one("def double(x):\n    return x", "assert double(0) == 0\nassert double(2) == 4, 'not doubled'")
    assert (result.ok, result.reason) == (False, "AssertionError: not doubled (line 2 of check)")


def test_code_that_is_no_python_fails(run_one) -> None:
    result = run_one("def f(:")
    assert not result.ok
    assert result.reason.startswith("SyntaxError")


def test_an_endless_loop_ends_at_the_deadline(run_one) -> None:
    start = time.monotonic()
    result = run_one("while True:\n    pass", seconds=0.5)
    assert (result.ok, result.reason) == (False, "not done after 0.5 s")
    assert time.monotonic() - start < 10


def test_a_signal_that_the_code_ignores_does_not_save_it(run_one) -> None:
    code = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.setitimer(signal.ITIMER_REAL, 0)\nwhile True:\n    pass"
    assert run_one(code, seconds=0.5).reason == "not done after 0.5 s"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the address space")
def test_a_memory_hog_is_stopped(run_one) -> None:
    assert run_one("x = bytearray(10**9)", memory_mib=256).reason == "used more memory than it may"
    assert run_one("x = bytearray(10**8)", memory_mib=256).ok


FORBIDDEN = [
    "import socket\nsocket.socket().connect(('127.0.0.1', 9))",
    "import socket\nsocket.getaddrinfo('localhost', 80)",
    "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/')",
    "import subprocess\nsubprocess.run(['true'])",
    "import os\nos.system('true')",
    "import os\nos.execv('/bin/true', ['true'])",
    "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "import os\nos.kill(os.getppid(), 9)",
    "import ctypes\nctypes.CDLL(None)",
    "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()",
]


@needs_fork
def test_the_network_and_other_processes_are_refused() -> None:
    for code, result in zip(FORBIDDEN, run_checks([(code, "") for code in FORBIDDEN]), strict=True):
        assert not result.ok, code
        assert result.reason.startswith("Forbidden: the sandbox"), (code, result)


@needs_fork
def test_a_fork_bomb_does_not_go_off() -> None:
    code = "import os\nfor _ in range(1000):\n    try:\n        os.fork()\n    except PermissionError:\n        pass\nprint('alone')"
    result = run_checks([(code, "")])[0]
    assert result.ok
    assert result.output.count("alone") == 1
    assert result.refused == "the sandbox does not let code do this: os.fork"


def test_a_refusal_that_the_code_caught_is_told(run_one) -> None:
    code = "import socket\ntry:\n    socket.socket().connect(('127.0.0.1', 9))\nexcept OSError:\n    pass"
    result = run_one(code, "assert True")
    assert (result.ok, result.reason) == (True, "")
    assert result.refused.startswith("the sandbox has no network: socket.")
    assert run_one("x = 1").refused == ""


def test_files_outside_the_folder_stay_as_they_are(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    codes = [
        f"open({str(kept)!r}, 'w')",
        f"open({str(kept)!r}, 'r+')",
        f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.rename({str(kept)!r}, 'here.txt')",
        f"from pathlib import Path\nPath({str(tmp_path)!r}, 'new').mkdir()",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
        f"import os\nos.remove('kept.txt', dir_fd=os.open({str(tmp_path)!r}, os.O_RDONLY))",
        f"import sqlite3\nsqlite3.connect({str(tmp_path / 'new.db')!r})",
        f"import os\nos.symlink({str(kept)!r}, 'link')\nopen('link', 'w')",
    ]
    for code, result in zip(codes, run_checks([(code, "") for code in codes]), strict=True):
        assert "Forbidden" in result.reason, (code, result)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert kept.read_text() == "mine"


def test_files_inside_the_folder_are_free_and_gone_afterwards(run_one) -> None:
    code = "from pathlib import Path\nimport tempfile\nPath('a').mkdir()\nPath('a/b.txt').write_text('hi')\nfolder = tempfile.mkdtemp()"
    code += "\nwith tempfile.TemporaryDirectory() as gone:\n    Path(gone, 'd').mkdir()"
    check = "assert Path('a/b.txt').read_text() == 'hi'\nPath(folder, 'c').write_text('x')\nprint(Path.cwd())"
    result = run_one(code, check)
    assert result.ok, result
    assert not Path(result.output.strip()).exists()


def test_a_flood_of_output_is_cut(run_one) -> None:
    result = run_one("print('x' * 5_000_000)")
    assert result.ok
    assert 1000 < len(result.output) <= 20_000
    assert run_one("while True:\n    print('x' * 1000)", seconds=0.5).reason == "not done after 0.5 s"


def test_a_file_without_end_is_stopped() -> None:
    result = run_python("with open('big', 'wb') as f:\n    for _ in range(100):\n        f.write(bytes(1 << 20))")
    assert not result.ok


@pytest.mark.parametrize("way_out", ["import os\nos._exit(0)", "import sys\nsys.exit(0)", "raise SystemExit", "raise KeyboardInterrupt"])
def test_leaving_before_the_check_is_no_pass(run_one, way_out: str) -> None:
    assert not run_one(way_out, "assert False").ok


def test_one_bad_item_fails_alone() -> None:
    good, crash = ("x = 1", "assert x == 1"), ("import os, signal\nsignal.raise_signal(signal.SIGSEGV)", "")
    results = run_checks([good, ("while True: pass", ""), good, ("import os\nos._exit(3)", ""), crash, good], seconds=1)
    assert [result.ok for result in results] == [True, False, True, False, False, True]
    assert results[3].reason == "left with status 3 before its end"


def test_items_do_not_see_each_other() -> None:
    leave = ("import builtins, pathlib\nbuiltins.trace = 1\npathlib.Path('left').write_text('x')", "")
    look = ("import builtins, pathlib", "assert not hasattr(builtins, 'trace')\nassert not list(pathlib.Path('.').iterdir())")
    assert all(result.ok for result in run_checks([leave, look, leave, look]))


def test_a_check_reads_records_of_both_kinds(run_one) -> None:
    check = "assert get(make(), 'size') == 3"
    assert run_one("def make():\n    return {'size': 3}", check).ok
    header = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    assert run_one(f"{header}@dataclass\nclass Box:\n    size: int\ndef make():\n    return Box(3)", check).ok


def test_threads_and_event_loops_work(run_one) -> None:
    code = "import asyncio, threading\nseen = []\nt = threading.Thread(target=seen.append, args=(1,))\nt.start()\nt.join()"
    check = "async def two():\n    await asyncio.sleep(0)\n    return 2\nassert seen == [1] and asyncio.run(two()) == 2"
    assert run_one(code, check).ok


def test_the_environment_of_the_caller_is_not_handed_on(run_one, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PRIVATE_THING", "secret")
    assert run_one("import os", "assert 'A_PRIVATE_THING' not in os.environ").ok


def test_packages_beside_the_standard_library_are_not_there(run_one) -> None:
    assert run_one("import numpy").reason.startswith("ModuleNotFoundError")
    assert run_one("import json, sqlite3, decimal, zoneinfo").ok


def test_a_script_runs_as_main() -> None:
    result = run_python("import sys\nif __name__ == '__main__':\n    print('hello')\n    print('oh', file=sys.stderr)")
    assert result.ok
    assert sorted(result.output.split()) == ["hello", "oh"]


def test_hundreds_of_items_take_seconds_and_keep_their_order() -> None:
    start = time.monotonic()
    results = run_checks([(f"x = {i}", f"assert x % 3, {i}") for i in range(120)])
    assert [result.ok for result in results] == [bool(i % 3) for i in range(120)]
    assert results[63].reason == "AssertionError: 63 (line 1 of check)"
    assert time.monotonic() - start < 60  # a process for each would take longer; generous, as the machine may be busy


def test_no_items_give_no_results() -> None:
    assert run_checks([]) == []


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    run_checks([("open('a', 'w').close()", ""), ("import os\nos.mkdir('d')\nos._exit(1)", "")])
    assert list(tmp_path.iterdir()) == []
