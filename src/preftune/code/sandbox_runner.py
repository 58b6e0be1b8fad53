"""The inside of the sandbox: a script of the standard library alone that `sandbox.py` starts with `python -I -S -B`.

`batch` reads a request with many jobs from stdin, forks a child for each in turn, and writes one JSON line a job to stdout.
`alone` runs one job in this process. A verdict is "." and the reason why the job failed ("." alone where it passed), then a zero
byte and what was refused first, if anything was.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import select
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

# Loaded before the fork, so that the items that use them need not load them again.
_PRELOADED = ("argparse", "collections", "dataclasses", "datetime", "enum", "functools", "itertools", "logging", "pathlib", "re", "typing")

_FILE_MIB = 16
# Audit events (https://docs.python.org/3/library/audit_events.html) by their beginnings.
_OTHER_PROCESSES = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "os.kill", "pty.spawn")
_FORBIDDEN = (*_OTHER_PROCESSES, "ctypes.", "signal.pthread_kill", "urllib.Request", "webbrowser.", "winreg.")
# Events that change a path → where in the event's arguments stand the path and, if any, the descriptor of the folder it is relative to.
_PATH_EVENTS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.truncate": ((0, None),),
    "os.setxattr": ((0, None),),
    "os.removexattr": ((0, None),),
    "shutil.rmtree": ((0, None),),
    "sqlite3.connect": ((0, None),),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Forbidden(PermissionError):
    """What the sandbox does not let its code do."""


def get(obj: Any, name: str) -> Any:
    """Return a field of a record, be it an attribute or a key."""
    return obj[name] if isinstance(obj, Mapping) else getattr(obj, name)


def guard(folder: str) -> list[str]:
    """Refuse, from now on, the network, other processes and any change outside the folder.

    Returns a list that the first refusal is put into: code may catch the error and go on.
    """
    refused: list[str] = []
    root = os.path.realpath(folder)
    realpath, fsdecode, commonpath, join, null = os.path.realpath, os.fsdecode, os.path.commonpath, os.path.join, os.devnull

    def inside(path: Any, folder_descriptor: Any = -1) -> bool:
        if path is None or isinstance(path, int):  # a file that is open already
            return True
        text = fsdecode(path)
        if text in (null, ":memory:", ""):
            return True
        if isinstance(folder_descriptor, int) and folder_descriptor >= 0:
            text = join(realpath(f"/proc/self/fd/{folder_descriptor}"), text)  # without /proc this lies outside, so it is refused
        try:
            return commonpath([root, realpath(text)]) == root
        except ValueError:  # another drive
            return False

    def refuse(why: str) -> Forbidden:
        if not refused:
            refused.append(why[:300])
        return Forbidden(why)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & _WRITING) if isinstance(flags, int) else bool(set(str(mode)) & set("wax+"))
            if writes and not inside(path):
                raise refuse(f"the sandbox does not let code write outside its folder: {path!r}")
        elif event.startswith("socket."):
            # An unconnected local pair is what asyncio wakes itself with.
            if not (event == "socket.__new__" and arguments[1] == getattr(sys.modules.get("socket"), "AF_UNIX", None)):
                raise refuse(f"the sandbox has no network: {event}")
        elif event.startswith(_FORBIDDEN):
            raise refuse(f"the sandbox does not let code do this: {event}")
        elif event in _PATH_EVENTS:
            for place, folder_place in _PATH_EVENTS[event]:
                if not inside(arguments[place], -1 if folder_place is None else arguments[folder_place]):
                    path = arguments[place]
                    raise refuse(f"the sandbox does not let code change what is outside its folder: {event} {path!r}")

    sys.addaudithook(hook)
    return refused


def limit(seconds: float, memory_mib: int) -> None:
    """Set the limits of this process, those that the system knows."""
    try:
        import resource
    except ImportError:  # Windows
        return
    cpu_seconds = math.ceil(seconds)
    limits = {"RLIMIT_CPU": cpu_seconds + 1, "RLIMIT_AS": memory_mib << 20, "RLIMIT_FSIZE": _FILE_MIB << 20}
    limits |= {"RLIMIT_NPROC": 1024, "RLIMIT_NOFILE": 128, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        # macOS has no limit of the address space; a lower hard limit than ours may stand already.
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))


def cut_network() -> None:
    """Move this process into a network namespace without a way out, where the system lets us; the audit hook stands anyhow."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        new_user, new_network = 0x10000000, 0x40000000
        ctypes.CDLL(None).unshare(new_user | new_network)


def execute(job: dict[str, str]) -> str:
    """Run a job's code and check in one namespace; return "" where both reach their end, else the reason."""
    # A true module: dataclasses looks the module of a class up in sys.modules.
    module = types.ModuleType(job["name"])
    module.__dict__["get"] = get
    sys.modules[job["name"]] = module
    try:
        for part in ("code", "check"):
            exec(compile(job[part], f"<{part}>", "exec", dont_inherit=True), module.__dict__)
    except MemoryError:
        return "used more memory than it may"
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: whatever ends the code before its end
        line = _line_in_job(error)
        return f"{type(error).__name__}: {str(error)[:300]}{f' (line {line} of {part})' if line else ''}".replace("\n", " ")
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the code may have closed or replaced it
                stream.flush()
    return ""


def _line_in_job(error: BaseException) -> int | None:
    line, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename in ("<code>", "<check>"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def run_child(job: dict[str, str], limits: dict[str, Any], folder: str, output: int, verdict: int) -> None:
    """The life of a forked child: limits, guard, the job, its verdict. Never returns."""
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, descriptor in ((0, nothing), (1, output), (2, output)):
            os.dup2(descriptor, target)
        os.chdir(folder)
        os.environ.update(HOME=folder, TMPDIR=folder)
        tempfile.tempdir = folder
        signal.setitimer(signal.ITIMER_REAL, limits["seconds"] + 1)  # should the runner be gone
        write, leave = os.write, os._exit
        limit(limits["seconds"], limits["memory_mib"])
        refused = guard(folder)
        reason = execute(job)
        write(verdict, b"." + reason.encode(errors="replace")[:2000] + b"\0" + "".join(refused).encode(errors="replace"))
    finally:
        leave(0)


def run_forked(job: dict[str, str], limits: dict[str, Any], folder: str) -> dict[str, Any]:
    """Run a job in a forked child and return its result."""
    output_read, output_write = os.pipe()
    verdict_read, verdict_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(output_read)
        os.close(verdict_read)
        run_child(job, limits, folder, output_write, verdict_write)
    os.close(output_write)
    os.close(verdict_write)
    kept, late = _read_both(output_read, verdict_read, time.monotonic() + limits["seconds"], limits["max_output_bytes"])
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)  # should it not have reached setsid
    _, status = os.waitpid(child, 0)
    os.close(output_read)
    os.close(verdict_read)
    verdict, _, refused = kept[verdict_read].decode(errors="replace").partition("\0")
    if verdict:
        reason = verdict[1:]
    elif late:
        reason = f"not done after {limits['seconds']:g} s"
    elif os.WIFSIGNALED(status):
        reason = f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    else:
        reason = f"left with status {os.waitstatus_to_exitcode(status)} before its end"
    output = kept[output_read].decode(errors="replace")
    return {"ok": verdict == ".", "output": output, "reason": reason, "refused": refused.replace("\n", " ")}


def _read_both(output: int, verdict: int, deadline: float, max_bytes: int) -> tuple[dict[int, bytes], bool]:
    """Read both pipes until the verdict's end closes or the deadline; return what they held (the output's start), and "late"."""
    kept = {output: b"", verdict: b""}
    is_open = {output, verdict}
    while verdict in is_open:
        remaining = deadline - time.monotonic()
        ready = select.select(list(is_open), [], [], max(remaining, 0))[0]
        if not ready and remaining <= 0:
            return kept, True
        for pipe in ready:
            chunk = os.read(pipe, 65_536)
            if not chunk:
                is_open.discard(pipe)
            kept[pipe] = (kept[pipe] + chunk)[:max_bytes]
        if output in ready and remaining <= 0:  # a flood of output must not outrun the deadline
            return kept, True
    while output in is_open and select.select([output], [], [], 0)[0]:
        chunk = os.read(output, 65_536)
        if not chunk or len(kept[output]) >= max_bytes:
            break
        kept[output] = (kept[output] + chunk)[:max_bytes]
    return kept, False


def batch(request: dict[str, Any]) -> None:
    """Run all jobs of a request, one JSON line each."""
    for name in _PRELOADED:
        importlib.import_module(name)
    cut_network()
    for number, job in enumerate(request["jobs"]):
        folder = os.path.join(request["folder"], str(number))
        os.mkdir(folder)
        sys.stdout.write(json.dumps(run_forked(job, request["limits"], folder)) + "\n")
        sys.stdout.flush()


def alone(request: dict[str, Any]) -> None:
    """Run the one job of a request in this process."""
    verdict = os.open(request["verdict"], os.O_WRONLY | os.O_CREAT, 0o600)
    os.chdir(request["folder"])
    tempfile.tempdir = request["folder"]
    write, leave = os.write, os._exit
    limit(request["limits"]["seconds"], request["limits"]["memory_mib"])
    refused = guard(request["folder"])
    reason = execute(request["job"])
    write(verdict, b"." + reason.encode(errors="replace") + b"\0" + "".join(refused).encode(errors="replace"))
    leave(0)


_MODES: dict[str, Callable[[dict[str, Any]], None]] = {"batch": batch, "alone": alone}

if __name__ == "__main__":
    _MODES[sys.argv[1]](json.load(sys.stdin))
