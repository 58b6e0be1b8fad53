"""The files in examples/ are ready to be used."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

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
    assert "--entrypoint-num-gpus" in text, "or an actor gets the trainer's GPU"
    assert "-m preftune train" in text


def test_the_ray_job_is_the_command_that_was_typed(tmp_path):
    stand_in = tmp_path / "ray"
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    stand_in.chmod(0o755)
    project = tmp_path / "a project"
    project.mkdir()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HEAD": "http://head:8265", "PROJECT": str(project)}
    words = ["bash", str(RAY / "submit.sh"), "rloo", "rloo.yaml", "steps=3"]
    given = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert given[:3] == ["job", "submit", "--address"]
    command = given[given.index("--") + 1 :]
    shown = tmp_path / "python"
    shown.write_text('#!/usr/bin/env bash\necho "$PWD" "$@"\n', encoding="utf-8")
    shown.chmod(0o755)
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert told == f"{project} -m preftune train rloo rloo.yaml steps=3\n"


def test_slurm_starts_one_torchrun_on_each_node_that_all_meet_at_the_first(tmp_path):
    for name, says in (("scontrol", "printf 'node-7\\nnode-8\\n'"), ("srun", 'printf "%s\\n" "$OMP_NUM_THREADS" "$@"')):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{says}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "node-[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "41",
        "SLURM_CPUS_PER_TASK": "64",
        "SLURM_GPUS_ON_NODE": "8",
    }
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = ["bash", str(EXAMPLES / "slurm.sbatch"), "dpo", "dpo.yaml"]
    threads, *command = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert threads == "8"
    assert command[0] == "torchrun"
    assert {"--nnodes=2", "--rdzv-endpoint=node-7:29400", "--rdzv-id=41"} <= set(command)
    assert command[command.index("-m") :] == ["-m", "preftune", "train", "dpo", "dpo.yaml"]


def spec_of_cluster(name: str) -> dict[str, Any]:
    """Return the cluster that a file of Kubernetes describes."""
    file = yaml.safe_load((KUBERNETES / name).read_text(encoding="utf-8"))
    assert file.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert (file["apiVersion"], file["kind"]) == ("ray.io/v1", KINDS[name])
    if file["kind"] == "RayCluster":
        return file["spec"]
    assert file["spec"].keys() <= {"entrypoint", "entrypointNumGpus", "shutdownAfterJobFinishes", "rayClusterSpec"}
    assert file["spec"]["entrypoint"].endswith('-m preftune train rloo rloo.yaml"')
    return file["spec"]["rayClusterSpec"]


# What KubeRay's v1 API knows of these places, as far as our files use it; a misspelt key would be dropped in silence.
KINDS = {"rayjob.yaml": "RayJob", "raycluster.yaml": "RayCluster"}
CLUSTER, GROUP = {"rayVersion", "headGroupSpec", "workerGroupSpecs"}, {"rayStartParams", "template"}
WORKERS = GROUP | {"groupName", "replicas", "minReplicas", "maxReplicas"}


def test_every_file_for_kubernetes_is_looked_at():
    assert {path.name for path in KUBERNETES.iterdir()} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_the_cluster_on_kubernetes_has_room_for_the_workers_that_the_config_asks_for(name):
    cluster = spec_of_cluster(name)
    assert cluster.keys() == CLUSTER
    (group,) = cluster["workerGroupSpecs"]
    assert (cluster["headGroupSpec"].keys(), group.keys()) == (GROUP, WORKERS)
    for template in (group["template"], cluster["headGroupSpec"]["template"]):
        assert template["spec"].keys() == {"containers", "volumes"}
        assert template["spec"]["containers"][0].keys() == {"name", "image", "resources", "volumeMounts"}
        assert template["spec"]["containers"][0]["volumeMounts"][0]["name"] == template["spec"]["volumes"][0]["name"]
    rollout = load_config(stage_functions(Stage.rloo).config, RAY / "rloo.yaml", [], stage="rloo").rollout
    (pod,) = group["template"]["spec"]["containers"]
    assert group["minReplicas"] == group["replicas"] == rollout.workers  # all there from the start: room is waited for 30 s
    assert float(pod["resources"]["limits"]["cpu"]) >= rollout.cpus
    assert float(pod["resources"]["limits"]["nvidia.com/gpu"]) >= rollout.gpus
    pins = (EXAMPLES.parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
