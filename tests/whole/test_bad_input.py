"""What a stage cannot use gets a sentence and exit code 2; nothing that was done before is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from preftune.cli import main
from preftune.data.snapshot import load_snapshot, snapshot
from preftune.errors import DataError, DiskError, PreftuneError
from preftune.manifest import read_manifest
from preftune.models import checkpoint
from preftune.models.load import load_causal_lm
from preftune.stages import common, preference, sft
from preftune.training.loop import Loop, read_metrics

GOOD = [{"prompt": f"Say {word}.", "chosen": f"{word} {word}", "rejected": f"no {word}"} for word in ("one", "two", "six", "ten")]


@pytest.fixture
def project(toy, tmp_path, monkeypatch):
    """A copy of the toy project, from which commands are typed."""
    copied = toy.copy(tmp_path / "project")
    monkeypatch.chdir(copied.folder)
    return copied


def typed(capsys, *words: str) -> tuple[int, str, str]:
    """Run a command as typed in this folder and return (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as leaving:
        main(list(words))
    assert isinstance(leaving.value.code, int)
    return leaving.value.code, *capsys.readouterr()


def train(capsys, project, stage: str, *more: str, model: str = "base") -> tuple[int, str]:
    """Type a small training command; return (exit code, the last line of stderr)."""
    code, _, err = typed(capsys, "train", stage, f"data=snapshots/{project.data.name}", f"model={model}", "batch_size=12", *more)
    return code, err.strip().splitlines()[-1] if err.strip() else ""


def write(path: str, *rows: dict[str, Any] | str) -> str:
    Path(path).write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows), encoding="utf-8")
    return path


def finished(project) -> list[Path]:
    return sorted(project.out.glob("[!.]*")) if project.out.exists() else []


# Data.


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Say it.", "chosen": "same", "rejected": "same"}, "there is nothing to learn from two equal answers"),
        ({"prompt": "Say it.", "chosen": "same", "rejected": "same\n"}, "two answers differ only in the white space around them"),
        ({"prompt": "Say it.", "chosen": "", "rejected": "b"}, "an answer is empty"),
        ({"prompt": "Say it.", "chosen": "a", "rejected": " \n"}, "an answer is empty"),
        ('{"prompt": "Say it.", "chosen": "a", "rej', "the line is not JSON"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_line_and_the_good_ones_train(capsys, project, row, reason):
    code, out, err = typed(capsys, "import", write("rows.jsonl", *GOOD[:2], row, *GOOD[2:]), "--store", "new.db", "--json")
    assert (code, err) == (2, "1 of 5 rows were set aside; the others were read.\n")
    told = json.loads(out)["imports"][0]
    assert (told["new"], told["set_aside"]) == (4, {reason: 1})
    (aside,) = [json.loads(line) for line in Path(told["set_aside_file"]).read_text().splitlines()]
    assert aside["line"] == 3
    data = snapshot("new.db", Path("snapshots"), held_out=0.0)
    assert len(load_snapshot(data).train) == 4
    code, out, _ = typed(capsys, "train", "dpo", f"data={data}", "model=base")
    assert code == 0
    assert read_manifest(Path(out.split()[0]))["data"]["groups"] == 4


def test_a_file_of_nothing_but_bad_rows_is_one_sentence_with_the_reasons(capsys, project):
    equal = {"prompt": "Say it.", "chosen": "same", "rejected": "same"}
    code, out, err = typed(capsys, "import", write("rows.jsonl", equal, {**equal, "chosen": ""}), "--store", "new.db")
    assert (code, out) == (2, "")
    assert err.startswith("Error: rows.jsonl: no row can be used (")
    assert "1 × there is nothing to learn from two equal answers" in err
    assert "1 × an answer is empty" in err
    assert not Path("new.db").exists()


def test_data_of_ties_only_is_a_sentence(capsys, project):
    ties = [{"prompt": f"Say {n}.", "answers": ["a", "b"], "ranking": [[0, 1]]} for n in range(4)]
    typed(capsys, "import", write("rows.jsonl", *ties), "--store", "new.db")
    code, _, err = typed(capsys, "snapshot", "--store", "new.db")
    assert code == 2
    assert "all 4 comparisons are ties or even splits, so there is nothing to learn" in err


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_an_answer_longer_than_the_context_is_left_out_and_counted(toy, stage):
    long = {"prompt": "Go on, for long.", "chosen": "a b " * 200, "rejected": "b"}
    folder = toy.folder / "with_a_long_one"
    if not folder.exists():
        folder.mkdir()
        from preftune.data.importing import import_preferences

        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*GOOD, long]))
        import_preferences(folder / "rows.jsonl", folder / "store.db")
    data = snapshot(folder / "store.db", folder / "snapshots", held_out=0.0)
    facts = read_manifest(toy.run(stage, data=str(data), epochs=1))["data"]
    assert facts == {"groups": 4, "left_out": {"longer than 512 tokens": 1}, "turns_dropped": 0}  # the model's positions end at 512


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_nothing_that_fits_is_a_sentence(capsys, project, stage):
    code, said = train(capsys, project, stage, "max_tokens=16")
    assert code == 2
    assert said == ("Error: no example is left to learn from (24 longer than 16 tokens). Raise max_tokens or bring shorter examples.")
    assert not finished(project)


def test_held_out_pairs_that_do_not_fit_are_said_before_the_training(toy, monkeypatch):
    folder = toy.folder / "long_held_out"
    folder.mkdir()
    from preftune.data.importing import import_preferences

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    (folder / "held.jsonl").write_text(json.dumps({"prompt": "For long?", "chosen": "a b " * 200, "rejected": "b"}) + "\n")
    import_preferences(folder / "rows.jsonl", folder / "store.db")
    data = snapshot(folder / "store.db", folder / "snapshots", held_out_prompts=folder / "held.jsonl")
    monkeypatch.setattr(Loop, "steps", None)  # no step is done
    with pytest.raises(DataError, match=r"no example is left to learn from \(1 longer than 512 tokens\)"):
        toy.run("reward", data=str(data))


def test_ppo_leaves_out_prompts_that_leave_no_room_for_an_answer(toy):
    run = toy.run("ppo", steps=1, prompts_per_step=4, max_tokens=36)
    facts = read_manifest(run)["data"]
    assert facts["left_out"]["prompt too long"] > 0
    assert facts["groups"] + facts["left_out"]["prompt too long"] == 24
    with pytest.raises(DataError, match=f"{toy.data.name}: no prompt fits. Raise max_tokens or lower max_new_tokens"):
        toy.run("ppo", max_tokens=16)


def test_old_turns_leave_a_long_conversation_and_are_counted(toy):
    folder = toy.folder / "with_turns"
    folder.mkdir()
    from preftune.data.importing import import_preferences

    turns = [{"role": role, "content": text} for role, text in (("user", "b " * 150), ("assistant", "b " * 150), ("user", "Now?"))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*GOOD, {**GOOD[0], "prompt": turns}]))
    import_preferences(folder / "rows.jsonl", folder / "store.db")
    data = snapshot(folder / "store.db", folder / "snapshots", held_out=0.0)
    facts = read_manifest(toy.run("dpo", data=str(data), epochs=1))["data"]
    assert facts == {"groups": 5, "left_out": {}, "turns_dropped": 2}


# Settings.


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["learning_rate=1e-4"], 'the command line: key "learning_rate" is unknown. Did you mean "lr"?'),
        (["epoch=2"], 'key "epoch" is unknown. Did you mean "epochs"?'),
        (["adapter.rnk=2"], 'key "adapter.rnk" is unknown. Did you mean "rank"?'),
        (["loss=simp"], 'key "loss" is "simp": unknown. Did you mean "simpo"? There are dpo, cdpo,'),
        (
            ["loss=simpo", "label_smoothing=0.1"],
            'key "label_smoothing" means nothing to loss "simpo", which takes beta, gamma, nll_weight.',
        ),
        (["lr=-1"], 'key "lr" is -1: Input should be greater than 0.'),
        (['adapter.modules=["q_prj"]'], 'key "adapter.modules": "q_prj" is not in this model. It has: down_proj, gate_proj, k_proj,'),
    ],
)
def test_a_wrong_setting_is_refused_with_the_nearest_right_one(capsys, project, words, sentence):
    code, said = train(capsys, project, "dpo", *words)
    assert code == 2
    assert sentence in said
    assert not finished(project)


def test_minibatches_that_do_not_divide_are_refused_with_those_that_do(capsys, project):
    words = [f"data=snapshots/{project.data.name}", "model=base", "reward_model=base", "prompts_per_step=6", "minibatches=4"]
    code, _, err = typed(capsys, "train", "ppo", *words)
    assert code == 2
    assert '"minibatches" = 4 does not divide "prompts_per_step" = 6. Use 1, 2, 3, 6' in err


# Models.


def test_a_model_without_a_chat_template_is_refused_until_plain_is_set(capsys, project):
    shutil.copytree("base", "bare")
    Path("bare/chat_template.jinja").unlink()
    settings = json.loads(Path("bare/tokenizer_config.json").read_text())
    Path("bare/tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "chat_template"}))
    code, said = train(capsys, project, "dpo", model="bare")
    assert code == 2
    assert "bare: the tokenizer has no chat template, so nobody knows how a question becomes text." in said
    assert said.endswith('Set chat_template to "plain" for a base model, or to a file that holds a Jinja template.')
    assert train(capsys, project, "dpo", "chat_template=plain", model="bare")[0] == 0


BREAKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ('' if loop.last else ' earlier') + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_template_whose_prompt_depends_on_what_follows_is_refused_with_the_place(capsys, project):
    Path("breaking.jinja").write_text(BREAKING)
    code, said = train(capsys, project, "dpo", "chat_template=breaking.jinja")
    assert code == 2
    assert "base: the chat template renders the prompt differently once an answer follows (character 16: " in said
    assert said.endswith("Give a template whose prompt does not depend on what follows.")
    assert not finished(project)


def test_another_text_in_the_same_template_file_is_another_run(toy, tmp_path):
    template = tmp_path / "chat.jinja"
    own = (toy.base / "chat_template.jinja").read_text()
    template.write_text(own)
    first = toy.run("sft", chat_template=str(template), epochs=1)
    template.write_text(own + "{# another #}")
    assert toy.run("sft", chat_template=str(template), epochs=1) != first


def test_a_base_that_changed_under_a_run_is_refused(capsys, project):
    code, out, _ = typed(capsys, "train", "sft", f"data=snapshots/{project.data.name}", "model=base", "batch_size=12")
    assert code == 0
    run = out.split()[0]
    settings = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps({**settings, "rms_norm_eps": 0.1}))
    code, said = train(capsys, project, "dpo", model=run)
    assert code == 2
    assert f"{run}: its base model " in said
    assert "base is not the one that it was trained on. Bring the right one back." in said


def test_a_folder_of_the_same_name_where_the_command_is_typed_is_not_taken_for_the_projects(toy, tmp_path, monkeypatch):
    run = toy.run("sft", seed=51)
    (tmp_path / "base").mkdir()
    (tmp_path / "snapshots").mkdir()
    elsewhere = toy.copy(tmp_path / "project")
    monkeypatch.chdir(tmp_path)  # where "base" is an empty folder
    assert elsewhere.run("sft", seed=51).name == run.name


# The disk.


class FullDisk:
    """Lets so many checkpoints be written; the next one finds no room."""

    def __init__(self, room: int) -> None:
        self.room, self.save = room, torch.save

    def __call__(self, content: Any, file: Any) -> None:
        if not self.room:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        self.save(content, file)


def test_a_full_disk_at_the_first_save_is_met_before_any_step(capsys, project, monkeypatch):
    monkeypatch.setattr(checkpoint.torch, "save", FullDisk(0))
    code, said = train(capsys, project, "sft")
    assert code == 2
    assert "checkpoint.pt: the disk is full (" in said
    assert said.endswith("Nothing that was written before is lost: make room and run the same command again.")
    (partial,) = project.out.glob(".*.partial")
    assert [p.name for p in partial.iterdir()] == ["begun.json"]


def test_a_full_disk_in_the_middle_leaves_the_checkpoint_before_and_the_run_goes_on(toy, project, monkeypatch):
    undisturbed = toy.run("sft", epochs=1)
    log = Loop.log

    def log_and_save(self: Loop, step: int, metrics: dict[str, float]) -> None:
        log(self, step, metrics)
        self.save(step + 1)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "log", log_and_save)
        patch.setattr(checkpoint.torch, "save", FullDisk(3))  # before the first step, and after steps 1 and 2
        with pytest.raises(DiskError, match="the disk is full"):
            project.run("sft", epochs=1)
    (partial,) = project.out.glob(".*.partial")
    assert sorted(p.name for p in partial.iterdir()) == ["begun.json", "checkpoint.pt", "metrics.jsonl"]
    assert torch.load(partial / "checkpoint.pt", weights_only=True)["step"] == 2
    run = project.run("sft", epochs=1)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (run / "adapter" / name).read_bytes() == (undisturbed / "adapter" / name).read_bytes()
    assert [row["loss/train"] for row in read_metrics(run)] == [row["loss/train"] for row in read_metrics(undisturbed)]


@pytest.mark.parametrize("place", ["adapter", "model"])
def test_a_full_disk_as_the_result_is_saved_is_a_sentence_and_the_run_goes_on(project, monkeypatch, place):
    # safetensors tells the operating system's error in words.
    def full(*args: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    whole = place == "model"
    with monkeypatch.context() as patch:
        if whole:
            patch.setattr("transformers.PreTrainedModel.save_pretrained", full)
        else:
            patch.setattr(common, "save_adapter", full)
        with pytest.raises(DiskError, match=r"the disk is full \([0-9]+ MiB free\)"):
            project.run("dpo", whole=whole, epochs=1)
    assert not finished(project)
    monkeypatch.setattr(preference, "train_step", None)  # all steps were done and saved
    assert load_causal_lm(project.run("dpo", whole=whole, epochs=1)) is not None


# Numbers.


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_the_rows_and_nothing_counts_as_finished(capsys, project, monkeypatch, bad):
    honest = sft.batch_logprobs

    def with_a_bad_one(model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs, entropy = honest(model, batch)
        return torch.where(batch.completion_mask, logprobs * bad, logprobs), entropy

    monkeypatch.setattr(sft, "batch_logprobs", with_a_bad_one)
    code, said = train(capsys, project, "sft")
    assert code == 1
    assert said.startswith(f"Error: SFT step 1: the loss is {bad} on rows ")
    examples = load_snapshot(project.data).chosen_as_demonstrations()
    named = re.findall(r"(\d+) \(prompt ([^)]+)\)", said)
    assert named
    assert all(examples[int(row)].group == prompt for row, prompt in named)
    assert said.endswith("The last good checkpoint stands; lower lr, or see the rows.")
    assert not finished(project)
    monkeypatch.setattr(sft, "batch_logprobs", honest)
    assert train(capsys, project, "sft")[0] == 0


def test_a_model_of_broken_weights_stops_at_its_first_batch(project):
    from safetensors.torch import load_file, save_file

    weights = load_file("base/model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, "base/model.safetensors", metadata={"format": "pt"})
    for stage in ("sft", "dpo"):
        with pytest.raises(PreftuneError, match="step 1: the loss is nan on rows "):
            project.run(stage)
    assert not finished(project)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_an_unfinished_run_is_no_model_for_the_next_command(capsys, project, monkeypatch, stage):
    monkeypatch.setattr(Loop, "close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    code, said = train(capsys, project, stage)
    assert code == 130
    assert said == "Interrupted. Nothing is lost: run the same command again to go on."
    (partial,) = project.out.glob(".*.partial")
    code, said = train(capsys, project, "dpo", model=str(partial))
    assert code == 2
