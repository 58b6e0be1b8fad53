"""What several processes cannot do together is said before the first step, once, and leaves nothing behind."""

from __future__ import annotations

import os
import sys

import pytest
import yaml
from tests.processes import two_ended

from preftune._cli_output import run_app
from preftune.cli import app
from preftune.stages import common

pytestmark = pytest.mark.slow


def train(words: list[str], changed: str) -> None:
    """What each of the two processes does: a command, where the second finds another version of a library or another model."""
    resolved, versions, second = common.resolved, common.versions(), os.environ["RANK"] == "1"
    if second and changed == "version":
        common.versions = lambda: versions | {"torch": "1.0"}
    if changed == "model":
        common.world.of_machine = lambda work: work()  # as on a machine of its own
    if second and changed == "model":
        common.resolved = lambda *given: (resolved(*given)[0], {**resolved(*given)[1], "model": "0" * 64})
    code = run_app(app, words, debug=False)
    sys.stderr.flush()
    os._exit(code)


@pytest.mark.parametrize(
    ("changes", "changed", "sentence"),
    [
        (
            {"batch_size": 1},
            "",
            "an optimiser step has 1 row, and there are 2 processes. Give batch_size=2 or start fewer processes.",
        ),
        (
            {"kind": "dora"},
            "",
            '"dora" works in one process, and there are 2. Take lora or rslora, whose base is spread over the processes.',
        ),
        ({}, "version", "version torch is "),
        ({}, "model", "input model is "),
    ],
    ids=["fewer rows than processes", "dora", "another version", "another model"],
)
def test_what_cannot_go_together_is_said_once_before_the_first_step(toy, tmp_path, changes, changed, sentence):
    config = toy.config("sft", **{key: value for key, value in changes.items() if key != "kind"}).model_dump(mode="json")
    if "kind" in changes:
        config["adapter"]["kind"] = changes["kind"]
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    codes, said = two_ended(tmp_path, train, ["train", "sft", str(path), "--out", str(tmp_path / "runs")], changed)
    assert codes == [2, 2], said
    assert said.count(sentence) == 1, said
    assert not any((tmp_path / "runs").rglob("*"))
