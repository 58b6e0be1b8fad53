"""How the command line speaks: errors as sentences with their exit code, results on stdout, all else on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.errors import PreftuneError, Stopped

INTERRUPTED = 130
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def run_app(app: Callable[..., Any], argv: Sequence[str], *, debug: bool) -> int:
    """Run the typer app and return the exit code: 0 done, 1 failed, 2 wrongly used, 130 interrupted."""
    try:
        app(args=list(argv), prog_name="preftune")
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if code == INTERRUPTED:
            print("\nInterrupted. Nothing is lost: run the same command again to go on.", file=sys.stderr)
        return code
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        return stopped.exit_code
    except PreftuneError as error:
        if error.said:
            return error.exit_code
        _show(str(error), debug=debug)
        return error.exit_code
    except OSError as error:
        _show(_sentence_of(error), debug=debug)
        return 1
    except Exception as error:
        if _is_loss_of_another(error):
            _show("another process of this run has ended; its own words say why.", debug=debug)
            return 1
        hint = "" if debug else " Run it again with --debug to see where, and report it."
        _show(f"This is a fault in preftune: {type(error).__name__}: {error}.{hint}", debug=debug)
        return 1
    return 0


def _is_loss_of_another(error: Exception) -> bool:
    # torch says it in words alone: gloo's are "Connection closed by peer" and "reset by peer", and the address; NCCL names itself.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and isinstance(error, RuntimeError) and any(word in str(error) for word in ("by peer", "gloo", "NCCL"))


def _sentence_of(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{(error.strerror or str(error)).lower()}. Nothing that was written before is lost."


def _show(sentence: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    rank = os.environ.get("RANK", "0")  # of the processes that torchrun starts
    print(f"{red}Error:{plain} {'' if rank == '0' else f'process {rank}: '}{sentence}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print one JSON object to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_result(result: Path, started: float, next_command: str, *, as_json: bool) -> None:
    """Say where a command's folder or file is, how long it took, and which command comes next.

    started: time.time() when the command began; a folder whose manifest is older was there already.
    """
    from preftune.manifest import MANIFEST
    from preftune.progress import duration

    written = result / MANIFEST if result.is_dir() else result
    was_there = written.exists() and written.stat().st_mtime < started
    if as_json:
        print_json({"path": str(result), "already_there": was_there, "seconds": round(time.time() - started, 1), "next": next_command})
        return
    head = f"already there: {result}." if was_there else f"{result} ({duration(time.time() - started)})."
    print(f"{head} Next: {next_command}")
