"""An evaluation folder holds what the report, the gate and the summary read, and tells a better model from a worse one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from preftune.cli import main
from preftune.code.style import CONVENTIONS
from preftune.errors import DataError
from preftune.evaluate import run as evaluation
from preftune.evaluate.run import Size, evaluate, read_evaluation
from preftune.evaluate.task_settings import parse_task
from preftune.manifest import read_manifest
from preftune.release.gate import judge
from preftune.stages import reward

TINY = Size(prompts=4, max_new_tokens=64, facts=24, texts=2, functions=2)
ESTIMATE = {"value", "low", "high", "n"}
OF_EVERY_MODEL = {
    "style", "fully_adherent", "parses", "passes_check", "ends_by_itself", "mean_tokens", "reward", "sampled_reward",
}  # fmt: skip
OF_A_TUNED_MODEL = {"style_gain", "win_rate", "kl"}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(evaluation, "SIZES", {"small": TINY})


@pytest.fixture(scope="session")
def coder(toy, teach, make_snapshot, tmp_path_factory) -> dict[str, Path]:
    """A project in which `base` answers all requests with plain code, `better` with code in the house style."""
    folder = tmp_path_factory.mktemp("coder")
    plain = "```python\ndef f(x):\n    return x\n```"
    styled = '```python\ndef f(x: int) -> int:\n    """Return x."""\n    return x\n```'
    names = ["apple", "brick", "cloud", "drum", "eagle", "fence", "grape", "house", "igloo", "jelly", "knife", "lamp"]
    rows = [
        {"prompt": f"Write f for the {n}.", "chosen": styled, "rejected": plain, "check": "assert f(2) == 2", "kind": "f"} for n in names
    ]
    start = toy.base
    for name, answer in (("base", plain), ("better", styled)):
        said = [{"prompt": row["prompt"], "completion": answer} for row in rows[:6]]
        start = teach(start, said, folder / f"lessons_{name}", folder / name, epochs=80, batch_size=6, lr=1e-2)
    data = make_snapshot(folder, rows, held_out=0.5)
    settings = {"data": str(data), "model": str(folder / "base"), "lr": 1e-2, "batch_size": 4, "epochs": 4}
    return {
        **{name: folder / name for name in ("base", "better")},
        "data": data,
        "reward_model": reward.run(reward.RewardConfig(**settings), folder / "runs"),
        "reports": folder / "reports",
    }


def measured(coder: dict[str, Path], model: Path, **options: Any) -> dict[str, Any]:
    options = {"reward_model": coder["reward_model"], "size": "small", **options}
    return read_evaluation(evaluate(model, coder["data"], base=coder["base"], out=coder["reports"], **options))


def test_a_better_model_is_seen_to_be_better_by_every_measure(coder):
    told = measured(coder, coder["better"])
    assert told["style"]["value"] > 0.9
    assert told["style_gain"]["low"] > 0.2
    assert told["fully_adherent"]["value"] == told["parses"]["value"] == told["passes_check"]["value"] == 1
    assert told["win_rate"]["value"] == 1
    assert told["kl"]["value"] > 1
    before = measured(coder, coder["base"], name="before")
    assert before["style"]["value"] < 0.7
    assert before["parses"]["value"] == before["passes_check"]["value"] == 1  # so it is the style alone that is worse
    assert told["reward"]["value"] > before["reward"]["value"]


def test_the_evaluation_of_a_tuned_model_has_every_field_of_the_contract(coder):
    folder = evaluate(
        coder["better"], coder["data"], base=coder["base"], reward_model=coder["reward_model"], out=coder["reports"], size="small"
    )
    told = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    for name in OF_EVERY_MODEL | OF_A_TUNED_MODEL:
        assert told[name].keys() >= ESTIMATE, name
        assert told[name]["low"] <= told[name]["value"] <= told[name]["high"], name
    assert "sd" in told["reward"]
    assert (told["model"], told["base"], told["size"], told["seed"]) == ("better", "base", "small", 0)
    assert told["reward_model"] == f"runs/{coder['reward_model'].name}"
    assert told["seconds"] > 0
    assert told["peak_memory_gib"] > 0
    assert told["conventions"].keys() == set(CONVENTIONS)
    assert all(c.keys() == {"followed", "applies"} and 0 <= c["followed"] <= c["applies"] <= 4 for c in told["conventions"].values())
    assert len(told["answers"]) == TINY.prompts
    fields = {"id", "kind", "prompt", "answer", "finished", "tokens", "reward", "kl", "passes", "adherence", "verdicts"}
    assert all(fields <= answer.keys() for answer in told["answers"])
    verdict = told["retention"]["verdict"]
    assert verdict["overall"] in ("kept", "lost", "not proved")
    assert [task["name"] for task in verdict["tasks"]] == ["facts", "prose", "code", "functions"]
    task_fields = {"name", "before", "after", "difference", "lower", "margin", "n", "unit", "verdict", "gated"}
    assert all(task_fields <= task.keys() for task in verdict["tasks"])
    assert {flip.keys() >= {"id", "task", "change"} for flip in verdict["flipped"]} <= {True}
    assert read_manifest(folder)["inputs"].keys() == {"model", "snapshot", "base", "reward_model"}


def test_the_base_itself_is_compared_with_nothing(coder):
    told = measured(coder, coder["base"])
    assert [told[name] for name in sorted(OF_A_TUNED_MODEL)] == [None, None, None]
    assert told["retention"]["verdict"] is None
    assert len(told["retention"]["measure"]["facts"]) == TINY.facts
    assert told["style"].keys() >= ESTIMATE


def test_the_same_weights_under_another_name_have_won_and_lost_nothing(coder):
    twin = coder["base"].with_name("twin")
    if not twin.exists():
        shutil.copytree(coder["base"], twin)
        (twin / "note.txt").write_text("a file that changes the folder's hash and not the model")
    told = measured(coder, twin)
    assert told["style_gain"]["value"] == 0
    assert told["win_rate"]["value"] == 0.5
    assert told["kl"]["value"] == pytest.approx(0, abs=1e-3)
    verdict = told["retention"]["verdict"]
    assert verdict["flipped"] == []
    assert all(task["difference"] == pytest.approx(0, abs=1e-6) for task in verdict["tasks"])
    assert verdict["overall"] != "lost"


def test_the_same_call_finds_the_same_folder_without_work(coder, monkeypatch):
    first = measured(coder, coder["better"])
    monkeypatch.setattr(evaluation, "Subject", None)
    assert measured(coder, coder["better"]) == first


def test_what_is_killed_in_the_middle_leaves_no_evaluation_and_is_done_again(coder, monkeypatch, tmp_path):
    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(coder["base"], coder["data"], base=coder["base"], out=tmp_path / "reports", size="small")
    assert not list((tmp_path / "reports").glob("[!.]*"))
    assert evaluate(coder["base"], coder["data"], base=coder["base"], out=tmp_path / "reports", size="small").exists()


def test_retention_may_be_left_out_and_is_then_absent_and_not_kept(coder):
    told = measured(coder, coder["better"], retention=False)
    assert told["retention"] is None
    assert told["style_gain"]["value"] > 0


def test_without_a_reward_model_there_is_no_reward_and_no_win_rate(coder):
    told = measured(coder, coder["better"], reward_model=None, retention=False)
    assert (told["reward_model"], told["reward"], told["win_rate"]) == (None, None, None)


def test_an_unknown_size_and_a_snapshot_that_holds_nothing_out_are_sentences(coder, toy, make_snapshot, tmp_path):
    with pytest.raises(DataError, match='"huge" is no size. Use one of: small'):
        measured(coder, coder["better"], size="huge")
    data = make_snapshot(tmp_path, [{"prompt": "Hi.", "chosen": "a", "rejected": "b"}], held_out=0.0)
    with pytest.raises(DataError, match="the snapshot holds no prompt out. Take a snapshot with held_out above 0"):
        evaluate(coder["base"], data, base=coder["base"], out=tmp_path / "reports", size="small")


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo"])
def test_every_run_is_what_the_evaluate_command_takes(toy, capsys, monkeypatch, stage):
    monkeypatch.chdir(toy.folder)
    with pytest.raises(SystemExit) as leaving:
        main(["evaluate", str(toy.run(stage)), "--reward-model", str(toy.run("reward")), "--json"])
    out = capsys.readouterr().out
    assert leaving.value.code == 0
    told = read_evaluation(Path(json.loads(out)["path"]))
    assert (told["name"], told["base"]) == (stage, "base")
    assert told["passes_check"] is None  # these requests have no check
    assert told["win_rate"]["n"] == TINY.prompts


def test_a_base_model_without_a_template_is_measured_in_the_one_that_its_run_was_given(toy, tiny_folder):
    if not (toy.folder / "bare").exists():
        shutil.copytree(tiny_folder("gpt2"), toy.folder / "bare")
    run = toy.run("sft", model=str(toy.folder / "bare"), chat_template="plain", epochs=1)
    told = read_evaluation(evaluate(run, toy.data, base=toy.folder / "bare", out=toy.folder / "reports", size="small"))
    assert told["base"] == "bare"
    assert told["kl"]["value"] > 0


def own_files(folder: Path) -> list[str]:
    """A file of choices and one of functions, in which the two models answer otherwise; as the command line takes them."""
    styled = 'def f(x: int) -> int:\n    """Return x."""\n    return x'
    choices = [
        {"question": f"Write f for the {n}.", "choices": [f"```python\n{styled}\n```", "def f(x): pass"], "answer": 0} for n in "abc"
    ]
    (folder / "rules.jsonl").write_text("\n".join(map(json.dumps, [*choices, {"question": "half"}])), encoding="utf-8")
    task = {"entry_point": "f", "prompt": "def f(x):\n", "test": "def check(candidate):\n    assert candidate(2) == 2\n"}
    rows = [json.dumps({"task_id": f"t/{n}", **task, "prompt": f"def f(x):\n    # {n}\n"}) for n in range(2)]
    (folder / "written.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return [f"choices={folder}/rules.jsonl,margin=0.2", f"functions={folder}/written.jsonl,chat=true,gated=false,max_new_tokens=48"]


def test_tasks_of_the_teams_own_are_measured_judged_and_their_flipped_items_are_there_to_read(coder, tmp_path, monkeypatch, capsys):
    options = own_files(tmp_path)
    folder = evaluate(
        coder["better"], coder["data"], base=coder["base"], out=coder["reports"], size="small", tasks=[parse_task(o) for o in options]
    )
    told = read_evaluation(folder)
    tasks = {task["name"]: task for task in told["retention"]["verdict"]["tasks"]}
    assert list(tasks) == ["facts", "prose", "code", "functions", "rules", "written"]
    assert (tasks["rules"]["n"], tasks["rules"]["gated"], tasks["rules"]["margin"]) == (3, True, 0.2)
    assert (tasks["written"]["n"], tasks["written"]["gated"], tasks["written"]["verdict"]) == (2, False, None)
    own = told["retention"]["measure"]["own"]
    assert own[0]["set_aside"] == ['line 4: "choices" must be a list of two texts or more']
    assert [name for name, _ in own[0]["also"]] == ["acc", "acc_norm"]
    assert all(item["asked"].startswith("Complete this Python function") and item["said"] for item in own[1]["items"])
    manifest = read_manifest(folder)
    assert [(task["kind"], task["margin"]) for task in manifest["config"]["tasks"]] == [("choices", 0.2), ("functions", 0.03)]
    flipped = told["retention"]["verdict"]["flipped"]
    page = (folder / "flipped.md").read_text(encoding="utf-8")
    assert all(f"### {flip['task']}: {flip['id']}\n" in page for flip in flipped)
    assert judge(told).checks  # the gate reads an evaluation with such tasks
    # The command finds the same evaluation by the same words, and says where the flipped items are.
    monkeypatch.chdir(coder["base"].parent)
    with pytest.raises(SystemExit) as leaving:
        words = [word for option in options for word in ("--retention", option)]
        main(["evaluate", "better", "--data", str(coder["data"]), "--base", "base", "--out", str(coder["reports"]), *words])
    printed = capsys.readouterr()
    assert leaving.value.code == 0
    assert "already there" in printed.out
    assert f"retention: {told['retention']['verdict']['overall']}" in printed.err
    assert f"read {coder['reports'] / folder.name}/flipped.md" in printed.err if flipped else "no item flipped" in printed.err


def test_a_task_whose_file_is_not_there_stops_before_anything_is_measured(coder, tmp_path):
    with pytest.raises(DataError, match="there is no such file. It is named by the retention task rules"):
        measured(coder, coder["better"], tasks=[parse_task(f"choices={tmp_path}/rules.jsonl")])
