"""Two processes whose batches are drawn ahead learn what one does, also when they are stopped and go on."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import yaml
from tests.processes import two_ended
from tests.rollout_twin import Apart, Twin

from preftune._cli_output import run_app
from preftune.cli import app
from preftune.rollout import client
from preftune.training.loop import Loop, read_metrics

SETTINGS = {
    "steps": 4,
    "prompts_per_step": 4,
    "samples_per_prompt": 2,
    "seed": 23,
    "rollout": {"backend": "ray", "max_staleness": 2},
}


def train(commands: list[tuple[list[str], int]]) -> None:
    """What each of the two processes does: commands of preftune, some of which are stopped after a step."""
    client.open_client = lambda config, start, note: Apart(start)
    log, stop = Loop.log, [0]

    def log_and_stop(self: Loop, step: int, metrics: dict[str, float]) -> None:
        log(self, step, metrics)
        if step + 1 == stop[0] and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    Loop.log = log_and_stop
    for words, stop[0] in commands:
        code = run_app(app, words, debug=False)
        if code:
            break
    sys.stderr.flush()
    os._exit(code)


@pytest.mark.slow
def test_two_processes_draw_ahead_as_one_does_and_go_on_where_they_were_stopped(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "open_client", lambda config, start, note: Twin(start))
    one = toy.run("rloo", **SETTINGS)
    there = toy.copy(tmp_path / "two", toy.run("reward"))
    config = there.folder / "rloo.yaml"
    config.write_text(yaml.safe_dump(there.config("rloo", **SETTINGS).model_dump(mode="json")), encoding="utf-8")
    unbroken, stopped = str(there.folder / "unbroken"), str(there.folder / "stopped")
    commands = [(["train", "rloo", str(config), "--out", out], stop) for out, stop in ((unbroken, 0), (stopped, 2), (stopped, 0))]
    codes, said = two_ended(there.folder, train, commands)
    assert codes == [0, 0], said[-3000:]
    two, again = (read_metrics(Path(out) / one.name) for out in (unbroken, stopped))
    for name in ("loss/policy", "grad_norm", "reward/score", "rollout/staleness", "mismatch/ess"):
        expected = [row[name] for row in read_metrics(one)]
        assert [row[name] for row in two] == pytest.approx(expected, abs=1e-4), name
        assert [row[name] for row in again] == [row[name] for row in two], name
