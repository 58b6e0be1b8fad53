"""The files in examples/ are ready to be used."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from preftune.config import load_config
from preftune.stages.kinds import Stage, stage_functions

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "torchrun"
SCRIPTS = sorted([*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.sbatch")])
RAY, KUBERNETES = EXAMPLES.parent / "ray", EXAMPLES.parent / "kubernetes"
CONFIGS = sorted([*EXAMPLES.glob("*.yaml"), *RAY.glob("*.yaml")])


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


def test_the_ray_job_is_bash_that_starts_a_stage():
    subprocess.run(["bash", "-n", str(RAY / "submit.sh")], check=True)
    text = (RAY / "submit.sh").read_text(encoding="utf-8")
    assert "ray job submit --address" in text
    assert "-m preftune train" in text


def test_the_cluster_of_the_kubernetes_job_has_room_for_the_workers_that_its_config_asks_for():
    job = yaml.safe_load((KUBERNETES / "rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["entrypoint"].endswith('-m preftune train rloo rloo.yaml"')
    rollout = load_config(stage_functions(Stage.rloo).config, RAY / "rloo.yaml", [], stage="rloo").rollout
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    (pod,) = group["template"]["spec"]["containers"]
    assert group["minReplicas"] == group["replicas"] == rollout.workers  # all there from the start: room is waited for 30 s
    assert float(pod["resources"]["limits"]["cpu"]) >= rollout.cpus
    assert float(pod["resources"]["limits"]["nvidia.com/gpu"]) >= rollout.gpus
    pins = (EXAMPLES.parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
