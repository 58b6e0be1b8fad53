"""On-line DPO as docs/online-dpo.md tells it: its own commands, one after the other, for two rounds."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from preftune.cli import main
from preftune.data.snapshot import load_snapshot
from preftune.manifest import read_manifest
from preftune.models.load import load_causal_lm, load_renderer
from preftune.rollout.generate import generate

# What lets two layers learn in a second. The page's reader takes the defaults.
SMALL = {
    "sample": ["--max-new-tokens", "8", "--limit", "12"],
    "snapshot": ["--held-out", "0.3"],
    "train": ["lr=0.002", "batch_size=6", "epochs=2", "adapter.rank=8"],
}


def commands(page: str, heading: str) -> list[list[str]]:
    """Return the words of each command in the block below a heading."""
    block = re.search(rf"^## {heading}\n```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert block, heading
    return [shlex.split(line)[1:] for line in block[1].splitlines()]


def say(capsys, words: list[str]) -> str:
    """Run a command that succeeds, and return what it printed."""
    with pytest.raises(SystemExit) as left:
        main(words)
    out, err = capsys.readouterr()
    assert left.value.code == 0, err
    return out


def share_of_a(model: Path, data: Path) -> float:
    """Return in which share of sampled answers to held-out prompts "a" is more frequent than "b"."""
    renderer = load_renderer(model)
    prompts = [renderer.prompt_ids(p.messages) for p in load_snapshot(data).held_out_prompts]
    samples = generate(
        load_causal_lm(model), prompts, samples_per_prompt=8, max_new_tokens=8, temperature=1.0, seed=1, stop_ids=renderer.stop_ids,
        pad_id=renderer.pad_id,
    )  # fmt: skip
    texts = [renderer.decode(sample.ids) for sample in samples]
    return sum(text.count("a") > text.count("b") for text in texts) / len(texts)


def test_two_rounds_as_the_page_tells_them(toy, tmp_path, monkeypatch, capsys, repository):
    page = (repository / "docs" / "online-dpo.md").read_text(encoding="utf-8")
    start, reward = toy.run("sft", epochs=1, lr=1e-4), toy.run("reward")
    project = toy.copy(tmp_path / "project", start, reward)
    shutil.copy(toy.folder / "store.db", project.folder)
    monkeypatch.chdir(project.folder)
    names = {"SFT": start.name, "REWARD": reward.name}
    for number, heading in enumerate(("One round", "Further rounds"), start=1):
        for words in commands(page, heading):
            for name in sorted(names, key=len, reverse=True):
                words = [re.sub(rf"\b{name}\b", names[name], word) for word in words]
            out = say(capsys, [*words, *SMALL.get(words[0], [])])
            if words[0] == "snapshot":
                names["ID" if number == 1 else "ID2"] = re.search(r"snapshots/(\w+)", out)[1]
            if words[0] == "train":
                names[f"DPO{number}"] = re.match(r"runs/(\w+)", out)[1]
    first, second = (len(load_snapshot(Path("snapshots") / names[key]).train) for key in ("ID", "ID2"))
    assert second > first  # the pairs of all rounds
    shares = [share_of_a(model, toy.data) for model in (start, Path("runs") / names["DPO1"], Path("runs") / names["DPO2"])]
    assert shares[1] > shares[0] + 0.1
    assert shares[2] > shares[0] + 0.1
    assert read_manifest(Path("runs") / names["DPO2"])["inputs"]["model"] == read_manifest(start)["id"]
