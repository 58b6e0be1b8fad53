"""Models, not files of answers, are compared: what a reward says of them, and how far one is from the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.cli import main


def evaluate(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        main(["evaluate", *words])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code, *capsys.readouterr()


def test_a_run_is_compared_with_its_start_by_a_reward_model_and_by_kl(toy, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, reward = toy.run("dpo", epochs=2), toy.run("reward")
    words = [str(run), "--against", str(toy.base), "--judge", f"reward:{reward}", "--max-new-tokens", "12", "--json"]
    code, out, err = evaluate(capsys, *words)
    assert code == 0, err
    found = json.loads(out)
    pair, (ours, base) = found["pairs"][0], found["drift"]
    assert pair["wins"] + pair["ties"] + pair["losses"] == found["prompts"]
    assert ours["kl"]["value"] > 0
    assert ours["kl_why"] is None
    assert base["entropy"]["value"] > 0
    answers = [path for path in Path("reports").glob("*/answers.jsonl") if (path.parent / "sampled.jsonl").exists()]
    assert len(answers) == 2
    code, out, _ = evaluate(capsys, str(reward), "--pairs", str(toy.data), "--json")
    assert code == 0
    everything = json.loads(out)["files"][str(toy.data)]["everything"]
    assert everything["low"] <= everything["value"] <= everything["high"]


def test_models_of_other_vocabularies_have_no_kl_and_a_sentence_says_so(toy, tiny_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tiny_folder("mistral")
    code, out, err = evaluate(
        capsys, str(other), "--against", str(toy.base), "--data", str(toy.data), "--max-new-tokens", "4", "--limit", "3"
    )
    assert code == 0, err
    assert "have other vocabularies" in out
    assert "so there is no KL" in out
