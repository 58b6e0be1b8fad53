"""Runs Python code that a model wrote, within limits, and says what came of it.

This keeps honest mistakes harmless: endless loops, memory and output without end, files in the wrong place, a stray download.
It is no security boundary: whoever writes code on purpose to break out of a Python process can do so. Run code of authors whom
you do not trust in a container or virtual machine.

Each piece of code gets a fresh process, an empty working folder that is deleted afterwards, an environment without the caller's
variables, limits on CPU time, memory and file size, a deadline, and an audit hook that refuses the network, other processes and
writing outside the folder. What runs inside the process is `sandbox_runner.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_RUNNER = Path(__file__).with_name("sandbox_runner.py")
_BATCH = 25  # items a runner: its start costs some 50 ms, a forked item some 5 ms
_MAX_OUTPUT_BYTES = 20_000


@dataclass(frozen=True)
class SandboxResult:
    """What came of one piece of code: ok, what it wrote to stdout and stderr (its start), and the reason where it is not ok.

    refused: what the sandbox refused first, also where the code caught the error and went on; "" = nothing.
    """

    ok: bool
    output: str
    reason: str
    refused: str = ""


def run_python(code: str, *, seconds: float = 5.0, memory_mib: int = 512) -> SandboxResult:
    """Run a script (as `__main__`) in a process of its own; ok means that it ran to its end without an exception.

    seconds: the deadline, and the limit of CPU time. memory_mib: the limit of the address space, where the system has one.
    """
    return _run_batch([{"code": code, "check": "", "name": "__main__"}], seconds, memory_mib)[0]


def run_checks(items: Sequence[tuple[str, str]], *, seconds: float = 5.0, memory_mib: int = 512) -> list[SandboxResult]:
    """Run many (code, check) items, each code and then its check in the same namespace, and return a result for each, in order.

    ok means that both ran to their end. A check may call `get(obj, name)`, which reads an attribute or a key. seconds and
    memory_mib are those of each item. One process is started for every 25 items and forks a child for each, so an item that
    crashes, leaves or never ends fails itself alone. Where there is no fork, each item has a process started for it.
    """
    jobs = [{"code": code, "check": check, "name": "answer"} for code, check in items]
    batches = [jobs[i : i + _BATCH] for i in range(0, len(jobs), _BATCH)]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return [result for results in pool.map(lambda batch: _run_batch(batch, seconds, memory_mib), batches) for result in results]


def _run_batch(jobs: list[dict[str, str]], seconds: float, memory_mib: int) -> list[SandboxResult]:
    limits = {"seconds": seconds, "memory_mib": memory_mib, "max_output_bytes": _MAX_OUTPUT_BYTES}
    if hasattr(os, "fork"):
        return _run_forking(jobs, limits, seconds)
    return [_run_alone(job, limits, seconds) for job in jobs]


def _run_forking(jobs: list[dict[str, str]], limits: dict[str, Any], seconds: float) -> list[SandboxResult]:
    with tempfile.TemporaryDirectory(prefix="preftune-sandbox-", ignore_cleanup_errors=True) as folder:
        request = json.dumps({"jobs": jobs, "limits": limits, "folder": folder})
        patience = 30 + (seconds + 2) * len(jobs)
        try:
            done = subprocess.run(
                _command("batch"), input=request.encode(), capture_output=True, env=_environment(folder), timeout=patience, check=False
            )
            lines, died = done.stdout.decode(errors="replace").splitlines(), f"the runner ended with status {done.returncode}"
        except subprocess.TimeoutExpired as error:
            lines, died = (error.stdout or b"").decode(errors="replace").splitlines(), "the runner did not answer in time"
    results = [SandboxResult(**json.loads(line)) for line in lines]
    return results + [SandboxResult(False, "", died)] * (len(jobs) - len(results))


def _run_alone(job: dict[str, str], limits: dict[str, Any], seconds: float) -> SandboxResult:
    """Run one item in a process that was started for it: the way of systems without fork."""
    with tempfile.TemporaryDirectory(prefix="preftune-sandbox-", ignore_cleanup_errors=True) as folder:
        work, verdict = Path(folder, "work"), Path(folder, "verdict.txt")
        work.mkdir()
        request = json.dumps({"job": job, "limits": limits, "folder": str(work), "verdict": str(verdict)})
        with subprocess.Popen(
            _command("alone"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment(folder)
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(request.encode())
            process.stdin.close()
            kept: list[bytes] = []
            reader = threading.Thread(target=_drain, args=(process.stdout, kept), daemon=True)
            reader.start()
            try:
                process.wait(seconds + 1)
                late = False
            except subprocess.TimeoutExpired:
                process.kill()
                late = True
            reader.join(5)
        output = b"".join(kept)[:_MAX_OUTPUT_BYTES].decode(errors="replace")
        if late:
            return SandboxResult(False, output, f"not done after {seconds:g} s")
        said = verdict.read_text(encoding="utf-8") if verdict.exists() else ""
        if not said:
            return SandboxResult(False, output, f"left with status {process.returncode} before its end")
        said, _, refused = said.partition("\0")
        return SandboxResult(said == ".", output, said[1:], refused.replace("\n", " "))


def _drain(stream: IO[bytes], kept: list[bytes]) -> None:
    size = 0
    while chunk := stream.read(65_536):
        if size < _MAX_OUTPUT_BYTES:
            kept.append(chunk)
            size += len(chunk)


def _command(mode: str) -> list[str]:
    # -I: no user site, no PYTHON* variables, no script folder on the path. -S: no site-packages. -B: writes no .pyc.
    return [sys.executable, "-I", "-S", "-B", str(_RUNNER), mode]


def _environment(folder: str) -> dict[str, str]:
    environment = {"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "TEMP": folder, "TMP": folder, "LANG": "C.UTF-8", "TZ": "UTC"}
    if "SYSTEMROOT" in os.environ:  # without it Python does not start on Windows
        environment["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
    return environment
