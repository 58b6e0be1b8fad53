"""The inside of a reward function's process: a script of the standard library alone that `function.py` starts.

python -P -u function_runner.py FILE NAME: imports FILE, says {} or {"error": …}, then answers each line of JSON on stdin
({"prompts", "completions", "facts"}) with one on stdout: {"scores": [number, or why it is none]} or {"error": why}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load(file: Path, name: str) -> Callable[..., Any]:
    """Return the function `name` of a Python file, whose own folder is on the path as if it were run."""
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError("this is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise AttributeError(f'there is no function "{name}" in it')
    return function  # type: ignore[no-any-return]  # callable() says so much and no more


def answer(function: Callable[..., Any], request: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return what the function says of a request, ready for JSON."""
    try:
        returned = function(request["prompts"], request["completions"], request["facts"])
        if isinstance(returned, (str, bytes, dict)):
            return {"error": f"returned {_shown(returned)} and not a list of numbers"}
        try:
            values = list(returned)
        except TypeError:
            return {"error": f"returned {_shown(returned)} and not a list of numbers"}
        return {"scores": [_number(value) for value in values]}
    except Exception as error:
        return {"error": f"raised {_told(error, file)}"}


def _number(value: Any) -> float | str:
    if value is None or isinstance(value, (str, bytes)):
        return f"gives {_shown(value)}, which is not a number,"
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return f"gives {_shown(value)}, which is not a number,"
    return number if abs(number) < float("inf") else f"gives {number}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _told(error: BaseException, file: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}{f': {text}' if text else ''}{f' (line {lines[-1]} of {file.name})' if lines else ''}"


def leave_with(parent: int) -> None:
    """End this process once its parent is gone, also where the function never returns."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(file: Path, name: str) -> None:
    """Answer requests until there are no more."""
    threading.Thread(target=leave_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the function prints is no answer

    def say(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        function = load(file, name)
    except BaseException as error:  # SystemExit too: whatever keeps the file from being imported
        say({"error": _told(error, file)})
        return
    say({})
    for line in sys.stdin:
        say(answer(function, json.loads(line), file))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
