"""A released folder is the run's model for anyone with plain transformers, or it is not there at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from preftune.data.store import Store
from preftune.errors import ConfigError, DiskError, ModelError, PreftuneError, Refused
from preftune.manifest import disk_errors, hash_folder, read_manifest
from preftune.models.load import load_causal_lm, load_renderer
from preftune.records import Candidate, Judgement, Message, Prompt
from preftune.release import export
from preftune.release import folder as folder_module
from preftune.release.export import release
from preftune.release.folder import load_run, read_back, tell_older_readers, write_folder
from preftune.release.provenance import judgements_behind

REASON = "The facts of Python are not what this model is asked for."


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr(folder_module, "READ_BACK_TOKENS", 4)  # it is the folder that is tested here, not the length of its answers


def card_of(folder: Path) -> tuple[dict, str]:
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_run_that_passes_becomes_a_folder_with_all_that_it_needs(project, adapter_run, evaluated):
    folder = release(adapter_run, evaluated(adapter_run), project / "releases")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "README.md", "LICENSE", "provenance.json", "sha256sums.txt", "manifest.json",
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    }  # fmt: skip
    assert (folder / "LICENSE").read_text() == "The base may be used by all.\n"
    manifest = read_manifest(folder)
    assert manifest["kind"] == "release"
    assert manifest["inputs"]["run"] == adapter_run.name
    assert manifest["gate"]["passed"]
    assert manifest["read_back"]["max_logit_difference"] == 0  # both sum in transformers' order, whatever our own layers do


@pytest.mark.slow
def test_the_cards_own_snippet_generates_in_a_fresh_interpreter(project, adapter_run, evaluated):
    folder = release(adapter_run, evaluated(adapter_run), project / "releases")
    snippet = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    script = snippet.replace("max_new_tokens=200", "max_new_tokens=12") + 'print(outputs[0, inputs["input_ids"].shape[1] :].tolist())\n'
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])

    # The same by hand: the likeliest token of the run's own model, twelve times.
    model, renderer = load_causal_lm(adapter_run, device=torch.device("cpu")), load_renderer(adapter_run)
    ids = renderer.prompt_ids([Message(role="user", content="Write a function that adds two numbers.")])
    ours: list[int] = []
    with torch.no_grad():
        while len(ours) < 12 and not renderer.stop_ids & set(ours):
            ours.append(int(model(torch.tensor([ids + ours])).logits[0, -1].argmax()))
    assert theirs == ours


def test_the_release_differs_from_the_base_and_equals_the_run(project, adapter_run, evaluated):
    folder = release(adapter_run, evaluated(adapter_run), project / "releases")
    probe = torch.tensor([[5, 80, 200, 33]])
    with torch.no_grad():
        base, run, released = (load_causal_lm(p, device=torch.device("cpu"))(probe).logits for p in (project / "base", adapter_run, folder))
    assert (base - run).abs().max() > 0.1
    torch.testing.assert_close(released, run, rtol=0, atol=1e-5)


def test_our_own_commands_take_the_release_as_a_model(project, adapter_run, evaluated):
    folder = release(adapter_run, evaluated(adapter_run), project / "releases")
    messages = [Message(role="user", content="Hi")]
    assert load_renderer(folder).prompt_ids(messages) == load_renderer(project / "base").prompt_ids(messages)
    assert load_renderer(folder).end_id == load_renderer(project / "base").end_id
    assert hash_folder(folder) == folder.name


def test_the_chat_template_is_in_both_places_and_generation_stops_at_the_turns_end(project, adapter_run, evaluated):
    folder = release(adapter_run, evaluated(adapter_run), project / "releases")
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    template = load_renderer(project / "base").template
    assert tokenizer_config["chat_template"] == template == (folder / "chat_template.jinja").read_text()
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"  # which transformers 4 knows too
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert {token["content"] for token in vocabulary if token["id"] in ends} == {"<|im_end|>", "<|endoftext|>"}


def test_every_file_may_be_read_by_others(project, adapter_run, evaluated):
    folder = release(adapter_run, evaluated(adapter_run), project / "releases")
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    new_file = project / "made-as-others-make-it"
    new_file.touch()
    assert {mode for name, mode in modes.items() if name != "adapter"} == {new_file.stat().st_mode & 0o777}
    assert folder.stat().st_mode & 0o777 == project.joinpath("runs").stat().st_mode & 0o777


def test_the_checksums_are_those_of_the_files(project, adapter_run, evaluated):
    folder = release(adapter_run, evaluated(adapter_run), project / "releases")
    lines = [line.split("  ", 1) for line in (folder / "sha256sums.txt").read_text().splitlines()]
    assert {name: digest for digest, name in lines} == {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("sha256sums.txt", "manifest.json")
    }
    assert read_manifest(folder)["checksums"] == hashlib.sha256((folder / "sha256sums.txt").read_bytes()).hexdigest()


@pytest.mark.parametrize(("verdict", "words"), [("lost", "Retention is lost"), ("not proved", "Retention is not proved")])
def test_a_run_that_lost_or_cannot_prove_that_it_kept_is_refused(project, adapter_run, evaluated, set_retention, verdict, words):
    set_retention(verdict)
    with pytest.raises(Refused, match=f"the gate refuses this model. {words}"):
        release(adapter_run, evaluated(adapter_run), project / "releases")
    assert not (project / "releases").exists()


def test_a_run_whose_style_is_not_won_is_refused(project, adapter_run, evaluated, evaluation):
    evaluation["style_gain"]["low"] = -0.02
    with pytest.raises(Refused, match="A gain in style over the base is not shown"):
        release(adapter_run, evaluated(adapter_run), project / "releases")


def test_a_reason_forces_the_release_and_stands_in_the_card_and_the_manifest(project, adapter_run, evaluated, set_retention):
    set_retention("lost")
    folder = release(adapter_run, evaluated(adapter_run), project / "releases", override=REASON)
    _, body = card_of(folder)
    assert body.index("Released against the gate") < body.index("## ")  # before any section
    assert REASON in body
    assert "Retention is lost" in body
    manifest = read_manifest(folder)
    assert manifest["config"]["override"] == REASON
    assert not manifest["gate"]["passed"]


def test_a_reason_where_none_is_needed_makes_no_other_release(project, adapter_run, evaluated):
    report = evaluated(adapter_run)
    folder = release(adapter_run, report, project / "releases", override=REASON)
    assert "against the gate" not in (folder / "README.md").read_text()
    assert release(adapter_run, report, project / "releases") == folder


def test_an_empty_reason_is_no_reason(project, adapter_run, evaluated, set_retention):
    set_retention("lost")
    with pytest.raises(ConfigError, match="the reason is empty"):
        release(adapter_run, evaluated(adapter_run), project / "releases", override=" \n")


def test_no_reason_forces_an_evaluation_of_another_model(project, adapter_run, whole_run, evaluated):
    with pytest.raises(ConfigError, match="this evaluation is of another model"):
        release(adapter_run, evaluated(whole_run), project / "releases", override=REASON)


def test_a_snapshot_is_no_model_to_release(project, adapter_run, evaluated):
    with pytest.raises(ConfigError, match="this is a snapshot folder"):
        release(next((project / "snapshots").iterdir()), evaluated(adapter_run), project / "releases")


def test_the_same_command_twice_finds_the_same_folder_untouched(project, adapter_run, evaluated):
    report = evaluated(adapter_run)
    first = release(adapter_run, report, project / "releases")
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert release(adapter_run, report, project / "releases") == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times


def perturb(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def forget_the_turns_end(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 310}')


def change_the_template(folder: Path) -> None:
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("assistant", "Assistant"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (perturb, "a logit differs by"),
        (drop_a_weight, r"weights are missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        (forget_the_turns_end, "generation stops at 310"),
        (change_the_template, "the chat template came back changed"),
    ],
)
def test_a_folder_that_does_not_read_back_leaves_nothing(project, adapter_run, evaluated, monkeypatch, harm, words):
    save = folder_module.save_model

    def save_badly(model, renderer, folder):
        save(model, renderer, folder)
        harm(folder)

    monkeypatch.setattr(folder_module, "save_model", save_badly)
    with pytest.raises(ModelError, match=f"does not read back as the same: {words}"):
        release(adapter_run, evaluated(adapter_run), project / "releases")
    assert list((project / "releases").iterdir()) == []


def test_what_a_killed_release_left_behind_does_not_slip_in(project, adapter_run, evaluated):
    report = evaluated(adapter_run)
    folder = release(adapter_run, report, project / "releases")
    half = folder.with_name(f".{folder.name}.partial")
    folder.rename(half)
    (half / "manifest.json").unlink()
    (half / "model-00001-of-00002.safetensors").write_bytes(b"half")
    again = release(adapter_run, report, project / "releases")
    assert again == folder
    assert not (again / "model-00001-of-00002.safetensors").exists()


def test_a_run_of_all_weights_is_released_without_an_adapter(project, whole_run, evaluated):
    folder = release(whole_run, evaluated(whole_run), project / "releases")
    assert not (folder / "adapter").exists()
    probe = torch.tensor([[5, 80, 200, 33]])
    with torch.no_grad():
        run, released = (load_causal_lm(p, device=torch.device("cpu"))(probe).logits for p in (whole_run, folder))
    assert torch.equal(run, released)


def test_the_card_holds_the_numbers_of_the_evaluation(project, adapter_run, evaluated, evaluation):
    folder = release(adapter_run, evaluated(adapter_run), project / "releases")
    head, body = card_of(folder)
    told = {metric["type"]: metric["value"] for metric in head["model-index"][0]["results"][0]["metrics"]}
    assert told == {
        "style": 0.6217, "style_gain": 0.3141, "win_rate": 0.777, "fully_adherent": 0.21, "parses": 0.97, "passes_check": 0.33,
        "ends_by_itself": 0.93, "mean_tokens": 71.37, "reward": 1.234, "kl": 12.34,
    }  # fmt: skip
    assert (head["base_model"], head["library_name"], head["license"]) == ("base", "transformers", "apache-2.0")
    assert head["tags"] == ["preftune", "dpo"]
    for words in (
        "62.2 % (95 % interval 58.1 to 66.0, n = 100)",  # style
        "12.3 nats an answer (95 % interval 10.9 to 13.8, n = 100)",  # KL
        "| type-hints | 71 of 98 |",
        "Verdict: **kept**",
        "| facts | 1,000 | 0.5500 | 0.5450 | -0.50 points | -1.23 points | 3.00 points | kept |",
        "| prose | 60 | 1.0123 | 1.0145 | -0.50 % | -0.31 % | 1.00 % | kept |",
        "| functions | 40 |",
        "The gate passed.",
        "| 3 pairs, 1 demonstration | 4 pairs, 5 prompts | 6 pairs (nearly alike) |",  # the snapshot's counts
        "| steps | 41 |",
        "| time | 1 min 15 s |",
        "| left out | 2 longer than 2,048 tokens |",
        "lr: 0.0123",
        "| seed | 7 |",
        "seed 3",  # the evaluation's
    ):
        assert words in body, words
    assert "never-seen" not in body  # a convention that applied nowhere says nothing


def test_the_way_back_reaches_the_rows_of_the_store(project, chained_run, evaluated):
    folder = release(chained_run, evaluated(chained_run), project / "releases")
    head, body = card_of(folder)
    snapshot = next((project / "snapshots").iterdir()).name
    sft = next(run.name for run in (project / "runs").iterdir() if read_manifest(run)["kind"] == "sft")
    assert "# base, tuned by SFT, then DPO" in body
    assert f"`adapter/` holds what the last stage trained alone, to be put on sft `{sft}`." in body
    assert head["tags"] == ["preftune", "sft", "dpo"]
    way = body.split("## Where it comes from")[1]
    places = [
        way.index(name) for name in (f"release `{folder.name}`", f"run: dpo `{chained_run.name}`", f"snapshot `{snapshot}`", f"sft `{sft}`")
    ]
    assert places[0] < min(places[1:])
    assert "store `5707e0aa`: the judgements on 3 prompts" in way
    rows = json.loads((folder / "provenance.json").read_text())
    assert [row["prompt_ids"] for row in rows if row["role"] == "data"] == [["aaaa1111", "bbbb2222", "cccc3333"]]
    assert {row["manifest"]["id"] for row in rows if row["manifest"]} == {chained_run.name, sft, snapshot}


def test_a_snapshot_that_is_gone_leaves_a_hole_in_the_card_which_only_a_reason_lets_through(project, adapter_run, evaluated):
    report = evaluated(adapter_run)
    shutil.rmtree(project / "snapshots")
    with pytest.raises(Refused, match=r"The card would lack what only these could tell: the data snapshots/[0-9a-f]{12} is gone\."):
        release(adapter_run, report, project / "releases")
    folder = release(adapter_run, report, project / "releases", override=REASON)
    body = (folder / "README.md").read_text()
    assert "The snapshot that it learned from is not there any more." in body
    assert re.search(r"data: ([0-9a-f]{12}) `\1` \(gone since\)", body)


def test_a_base_that_is_not_the_one_trained_on_stops_the_release(project, adapter_run, evaluated):
    (project / "base" / "LICENSE").write_text("Other words.\n")
    report = evaluated(adapter_run)
    with pytest.raises(Refused, match="the model base is changed"):
        release(adapter_run, report, project / "releases")
    with pytest.raises(ModelError, match="is not the one that it was trained on"):
        release(adapter_run, report, project / "releases", override=REASON)
    assert list((project / "releases").iterdir()) == []


def test_a_run_in_the_plain_template_is_released_with_it(project, make_adapter_run, evaluated):
    run = make_adapter_run(chat_template="plain")
    folder = release(run, evaluated(run), project / "releases")
    assert load_renderer(folder).prompt_text([Message(role="user", content="Hi")]) == "User: Hi\n\nAssistant: "


def test_an_evaluation_that_is_cut_off_is_a_sentence(project, adapter_run, evaluated):
    report = evaluated(adapter_run)
    (report / "evaluation.json").write_text('{"style": ')
    with pytest.raises(PreftuneError, match="this is not JSON"):
        release(adapter_run, report, project / "releases")


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(project, adapter_run, evaluated, monkeypatch):
    save = folder_module.save_model

    def save_half(model, renderer, folder):
        save(model, renderer, folder)
        with disk_errors(folder), Path("/dev/full").open("wb") as full:
            full.write(b"the next byte")

    monkeypatch.setattr(folder_module, "save_model", save_half)
    with pytest.raises(DiskError, match="the disk is full"):
        release(adapter_run, evaluated(adapter_run), project / "releases")
    assert list((project / "releases").iterdir()) == []


def test_a_disk_too_small_for_the_release_is_met_before_anything_is_written(project, adapter_run, evaluated, monkeypatch):
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    monkeypatch.setattr(export, "write_folder", lambda *_: pytest.fail("something was written"))
    with pytest.raises(DiskError, match=r"the release needs 0 MiB and 0 MiB are free"):
        release(adapter_run, evaluated(adapter_run), project / "releases")


def test_what_transformers_5_renamed_is_there_under_the_name_that_others_read(tmp_path):
    import transformers as hf

    scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled["original_max_position_embeddings"] = 64
    configs = {
        "plain": hf.LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e5}, dtype="float32"),
        "scaled": hf.LlamaConfig(rope_parameters=scaled),
        "two": hf.Gemma3TextConfig(num_hidden_layers=6),
    }
    written = {}
    for name, config in configs.items():
        config.save_pretrained(tmp_path / name)
        before = hf.AutoConfig.from_pretrained(tmp_path / name).to_dict()
        tell_older_readers(tmp_path / name / "config.json")
        assert hf.AutoConfig.from_pretrained(tmp_path / name).to_dict() == before
        written[name] = json.loads((tmp_path / name / "config.json").read_text())
    assert (written["plain"]["rope_theta"], written["plain"]["torch_dtype"]) == (1e5, "float32")
    assert "rope_scaling" not in written["plain"]
    assert written["scaled"]["rope_scaling"] == {key: value for key, value in scaled.items() if key != "rope_theta"}
    assert (written["two"]["rope_theta"], written["two"]["rope_local_base_freq"]) == (1e6, 1e4)


def test_a_tied_head_is_written_once_and_an_untied_one_beside_the_embeddings(project, adapter_run, evaluated, tmp_path):
    from safetensors import safe_open

    folder = release(adapter_run, evaluated(adapter_run), project / "releases")
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True

    model, renderer = load_run(project / "base")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.5)
    read_back(tmp_path / "untied", renderer, write_folder(model, renderer, tmp_path / "untied"))
    with safe_open(tmp_path / "untied" / "model.safetensors", "pt") as weights:
        assert not torch.equal(weights.get_tensor("lm_head.weight"), weights.get_tensor("model.embed_tokens.weight"))


def test_a_padded_vocabulary_keeps_its_rows_and_one_that_is_too_small_is_refused(project, tmp_path):
    model, renderer = load_run(project / "base")
    tokens = len(renderer.tokenizer)
    model.resize_token_embeddings(tokens, pad_to_multiple_of=64)
    assert model.config.vocab_size > tokens
    read_back(tmp_path / "padded", renderer, write_folder(model, renderer, tmp_path / "padded"))
    assert json.loads((tmp_path / "padded" / "config.json").read_text())["vocab_size"] == model.config.vocab_size

    model.resize_token_embeddings(tokens - 1)
    with pytest.raises(ModelError, match=f"there are {tokens - 1} embeddings for {tokens} tokens"):
        write_folder(model, renderer, tmp_path / "cut")


def test_the_way_back_ends_at_the_judgements_of_the_store(project, adapter_run, evaluated, tmp_path):
    folder = release(adapter_run, evaluated(adapter_run), project / "releases")
    rows = json.loads((folder / "provenance.json").read_text())
    data = next(row for row in rows if row["role"] == "data")
    made = datetime.fromisoformat(data["manifest"]["started"])
    prompt, other = (Prompt(messages=(Message(role="user", content=text),)) for text in ("Which?", "Not learned from."))
    judged = []
    for asked, when in ((prompt, made - timedelta(days=1)), (prompt, made + timedelta(days=1)), (other, made - timedelta(days=1))):
        answers = [Candidate(prompt_id=asked.id, text=text) for text in ("this", "that")]
        ranking = tuple((answer.id,) for answer in answers)
        judged.append((asked, answers, Judgement(prompt_id=asked.id, ranking=ranking, rater=str(when), created=when)))
    data["prompt_ids"] = [prompt.id, "not in this store"]
    (folder / "provenance.json").write_text(json.dumps(rows))
    with Store.create(tmp_path / "store.db") as store:
        for asked, answers, judgement in judged:
            store.add([asked], answers, [judgement])
        assert judgements_behind(folder, store) == {prompt.id: (judged[0][2],), "not in this store": ()}
        with pytest.raises(PreftuneError, match=r"there is no provenance\.json that can be read"):
            judgements_behind(project, store)
