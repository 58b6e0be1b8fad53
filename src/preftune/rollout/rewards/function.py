"""A Python function as a reward: it runs in a process of its own, so that it can be stopped, and what it returns is checked.

    def brevity(prompts, completions, facts):
        return [-len(text) / 1000 for text in completions]

prompts: for each completion its messages, a list of {"role", "content"}. completions: texts. facts: for each a dict of what the snapshot
knows of its prompt (kind, check, reference) and finished and tokens of the completion. Returns a number for each, in their order.
It is called with one completion or many, in any composition. What it prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

import torch

from preftune.data.batches import Group
from preftune.errors import ConfigError
from preftune.rollout.rewards.asking import Ask, Given

START_SECONDS = 300.0  # for what the file does when it is imported, such as loading a model of its own
HUNG_IN_A_ROW = 3  # completions after which the rest of a batch is not tried
_RUNNER = Path(__file__).with_name("function_runner.py")


class FunctionReward:
    """The function `name` of a Python file. seconds: how long one call may take."""

    def __init__(self, path: Path, name: str, *, seconds: float) -> None:
        self.path, self.name, self.seconds = path, name, seconds
        self._process = _Process(path, name)

    def score(self, asks: Sequence[Ask], groups: Sequence[Group]) -> Given:
        """Return what the function says of each completion; where a call for all of them fails, each is asked about alone."""
        try:
            found = self._call(asks)
        except CallFailed as error:
            if len(asks) == 1:
                return _given([error.why])
            found = self._one_by_one(asks)
        return _given(found)

    def _one_by_one(self, asks: Sequence[Ask]) -> list[float | str]:
        found: list[float | str] = []
        hung = 0
        for ask in asks:
            if hung == HUNG_IN_A_ROW:
                found.append(f"hung for the {HUNG_IN_A_ROW} before in a row, and was not called")
                continue
            try:
                found += self._call([ask])
                hung = 0
            except CallFailed as error:
                found.append(error.why)
                hung = hung + 1 if error.hung else 0
        return found

    def _call(self, asks: Sequence[Ask]) -> list[float | str]:
        """Return a number for each ask, or why it is none. Raises CallFailed where the call as a whole gives nothing."""
        request = {
            "prompts": [[{"role": m.role, "content": m.content} for m in ask.messages] for ask in asks],
            "completions": [ask.text for ask in asks],
            "facts": [{**ask.facts, "finished": ask.finished, "tokens": len(ask.ids)} for ask in asks],
        }
        answer = self._process.ask(request, self.seconds)
        if "error" in answer:
            raise CallFailed(str(answer["error"]))
        found: list[float | str] = answer["scores"]
        if len(found) != len(asks):
            raise CallFailed(f"returned {len(found)} rewards for {len(asks)} completions")
        return found

    def close(self) -> None:
        """End the process."""
        self._process.stop()


class CallFailed(Exception):
    """A call gave nothing to go by. why: the rest of a sentence about the function."""

    def __init__(self, why: str, *, hung: bool = False) -> None:
        super().__init__(why)
        self.why, self.hung = why, hung


def _given(found: Sequence[float | str]) -> Given:
    scores = torch.tensor([value if isinstance(value, float) else 0.0 for value in found])
    return Given(scores, {place: value for place, value in enumerate(found) if isinstance(value, str)})


class _Process:
    """The function's process: started at once, and again after it was killed."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._start()

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to a request. Raises CallFailed where it does not come in time; the process is then started anew."""
        if self._child.poll() is not None:
            self._start()
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
        except OSError:
            self.stop()
            raise CallFailed("ended its process") from None
        line = self._line(seconds)
        if line is None:
            self.stop()
            raise CallFailed(f"did not return within {seconds:g} s", hung=True)
        if not line:
            status = self._child.wait()
            self.stop()
            raise CallFailed(f"ended its process with status {status}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Kill the process."""
        self._finalizer()

    def _start(self) -> None:
        # -P: the runner's folder is not on the path, where its neighbours would hide modules of the user's.
        command = [sys.executable, "-P", "-u", str(_RUNNER), str(self.path.resolve()), self.name]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false")}
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        assert self._child.stdout is not None
        reader = threading.Thread(target=_read, args=(self._child.stdout, self._lines), daemon=True)
        reader.start()
        self._finalizer = weakref.finalize(self, _end, self._child, reader)
        line = self._line(START_SECONDS)
        said = json.loads(line) if line else {"error": "ended its process" if line == b"" else f"took over {START_SECONDS:g} s"}
        if "error" in said:
            self.stop()
            raise ConfigError(f'"{self.name}" cannot be used: {said["error"]}', str(self.path), "See docs/rewards.md for what it must be.")

    def _line(self, seconds: float) -> bytes | None:
        """Return the next line, b"" where the process has ended, or None where nothing comes in time."""
        try:
            return self._lines.get(timeout=seconds)
        except Empty:
            return None


def _read(stream: IO[bytes], lines: SimpleQueue[bytes]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(b"")


def _end(child: subprocess.Popen[bytes], reader: threading.Thread) -> None:
    child.kill()
    child.wait()
    reader.join(5)
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:  # what was never read is of no use to anybody
                continue
