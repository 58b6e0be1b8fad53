"""The files in examples/ are ready to be used."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from preftune.config import load_config
from preftune.stages.kinds import Stage, stage_functions

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "torchrun"
SCRIPTS = sorted([*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.sbatch")])
CONFIGS = sorted(EXAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_is_one_of_the_stage_that_it_is_named_after(path):
    kind = stage_functions(Stage(path.stem))
    found = load_config(kind.config, path, [], stage=path.stem)
    assert found.model_dump()["model"] == "models/base"


def test_the_vllm_example_names_servers_and_a_script_that_starts_one_as_it_has_to_be():
    folder = EXAMPLES.parent / "vllm"
    found = load_config(stage_functions(Stage("rloo")).config, folder / "rloo.yaml", [], stage="rloo")
    assert found.model_dump()["rollout"]["backend"] == "vllm"
    script = folder / "start-server.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert "VLLM_SERVER_DEV_MODE=1" in text
    assert "--logprobs-mode processed_logprobs" in text


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash_that_names_options_which_torchrun_has(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    from torch.distributed.run import get_args_parser

    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    text = path.read_text(encoding="utf-8")
    command = text[text.index("torchrun", text.index("exec ")) :]
    used = {option for option in re.findall(r"(?<=\s)--[a-z-]+", command.partition(" -m ")[0])}
    assert used
    assert used <= known
    assert "-m preftune train" in command
