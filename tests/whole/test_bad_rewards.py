"""A run whose rewards go wrong: it stops with a sentence and loses nothing, or goes on without the samples that nobody could judge."""

from __future__ import annotations

import re
import time

import pytest
import torch
from safetensors.torch import load_file
from tests.remote_server import choices, fails, send, serving
from transformers import AutoModelForCausalLM

from preftune.data import remote
from preftune.errors import PreftuneError
from preftune.manifest import read_manifest
from preftune.models.heads import save_reward_model, with_scalar_head
from preftune.models.load import load_causal_lm, load_renderer
from preftune.progress import Silent
from preftune.records import Message
from preftune.training.loop import read_metrics

SHORT = {"steps": 3, "prompts_per_step": 4, "samples_per_prompt": 2, "seed": 7}


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def weights(run):
    return {name: p.detach() for name, p in load_causal_lm(run).named_parameters()}


def letters(text: str) -> int:
    """Return a grade from 1 to 10: how many times a text says "a"."""
    return 1 + min(9, text.count("a"))


def test_a_judge_that_goes_down_in_mid_run_costs_nothing_and_the_run_goes_on(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BACK_OFF_SECONDS", 0.001)
    up_for: list[float] = [float("inf")]

    def graded(handler, request):
        if up_for[0] <= 0:
            return fails(503)(handler, request)
        up_for[0] -= 1
        (answer,) = re.findall(r"<<<answer\n(.*?)\n>>>", request.body["messages"][1]["content"], re.DOTALL)
        return send(handler, choices(f"Score: {letters(answer)}"))

    with serving(graded) as server:
        settings = {
            "reward_model": None,
            "rewards": [{"judge": {"url": f"http://127.0.0.1:{server.port}/v1", "concurrency": 1}}],
            **SHORT,
        }
        never_down = toy.copy(tmp_path / "never down")
        undisturbed = never_down.run("rloo", **settings)
        asked = len(server.seen)
        project = toy.copy(tmp_path / "project")
        up_for[0] = asked - 2  # so that it goes down in the last step
        with pytest.raises(PreftuneError, match=r"the judge does not answer .*verdicts of this step are kept.*The same command again"):
            project.run("rloo", **settings)
        time.sleep(0.2)  # what was under way has given up by then
        up_for[0], before = float("inf"), len(server.seen)
        resumed = project.run("rloo", **settings)
        assert len(server.seen) == before + 2  # only what nobody had answered
    assert [row["reward/score"] for row in read_metrics(resumed)] == [row["reward/score"] for row in read_metrics(undisturbed)]
    theirs = weights(undisturbed)
    assert all(torch.equal(own, theirs[name]) for name, own in weights(resumed).items())


# What a function does with an answer that says "b", and what is said of it.
WRONG = {
    "raises": ("raise ValueError('no such page')", r"raised ValueError: no such page \(line 6 of mine\.py\)"),
    "says nan": ("return float('nan')", r"gives nan"),
    "hangs": ("time.sleep(60)", r"(did not return within 0\.3 s|hung for the 3 before in a row, and was not called)"),
}


def with_function(folder, line: str) -> str:
    """Write a function that counts "a" and does `line` where it sees a "b"; return its name."""
    text = f"""
import time
def count(prompts, completions, facts):
    def one(text):
        if "b" in text:
            {line}
        return text.count("a")
    return [one(text) for text in completions]
def short(prompts, completions, facts):
    return [1.0] * (len(completions) - 1)
"""
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return "mine.py:count"


@pytest.mark.parametrize("kind", WRONG)
def test_a_function_that_fails_on_some_answers_marks_them_and_the_run_goes_on_or_stops_as_told(toy, tmp_path, kind):
    project, (line, said) = toy.copy(tmp_path / "project"), WRONG[kind]
    one = {"function": with_function(project.folder, line), "seconds": 0.3}
    settings = {"reward_model": None, **SHORT, "steps": 1}
    notes = Notes()
    run = project.run("rloo", rewards=[one | {"on_error": "skip"}], progress=notes, **settings)
    assert any(
        re.search(rf'the reward "count" {said} for completion \d of 8 \(prompt \d+, ".*"\)\. Such samples are left out', n)
        for n in notes.said
    )
    assert 0 < read_metrics(run)[0]["reward/failed"] < 1
    assert all(bool(p.isfinite().all()) for p in weights(run).values())
    with pytest.raises(PreftuneError, match=rf'the reward "count" {said} for completion \d of 8'):
        project.run("rloo", rewards=[one | {"on_error": "stop"}], **settings)
    assert [path.name for path in project.out.iterdir() if not path.name.startswith(".")] == [run.name]


def test_a_function_that_returns_too_few_rewards_stops_the_run_whatever_it_was_told(toy, tmp_path):
    project = toy.copy(tmp_path / "project")
    with_function(project.folder, "pass")
    with pytest.raises(PreftuneError, match="none of the 8 completions could be judged"):
        project.run("rloo", reward_model=None, rewards=[{"function": "mine.py:short", "on_error": "skip"}], **SHORT)


@pytest.fixture(scope="module")
def silent(toy, tmp_path_factory):
    """The toy with a base that ends its answers at once."""
    folder = tmp_path_factory.mktemp("silent")
    project = toy.copy(folder / "project", toy.run("reward"))
    model, renderer = AutoModelForCausalLM.from_pretrained(project.base), load_renderer(project.base)
    prompts = [torch.tensor([renderer.prompt_ids((Message(role="user", content=f"{word}?"),))]) for word in ("violin", "copper")]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(40):
        optimiser.zero_grad()
        (-model(prompts[step % 2]).logits[0, -1].log_softmax(-1)[renderer.end_id]).backward()
        optimiser.step()
    model.save_pretrained(project.base)
    return project


@pytest.mark.parametrize("stage", ["ppo", "rloo", "grpo"])
def test_answers_without_a_word_are_said_and_judged_like_any_other(silent, stage):
    reward_model = str(next(path for path in silent.out.iterdir() if read_manifest(path)["kind"] == "reward"))
    notes = Notes()
    run = silent.run(stage, reward_model=reward_model, progress=notes, **SHORT)
    assert any(re.fullmatch(r"\d of 8 answers are empty; they are judged like any other\.", note) for note in notes.said)
    rows = read_metrics(run)
    assert rows[0]["reward/empty"] > 0.5
    assert all(bool(torch.tensor([value for value in row.values() if isinstance(value, float)]).isfinite().all()) for row in rows)
    assert all(bool(p.isfinite().all()) for p in weights(run).values())


def test_ppo_on_rewards_that_are_all_equal_says_so_and_goes_nowhere(toy):
    notes = Notes()
    reward_model = str(toy.run("reward"))
    settings = {"reward_model": reward_model, "rewards": [{"model": reward_model, "weight": 0.0}], "no_eos_score": 0.0, "kl_coef": 0.0}
    run = toy.run("ppo", progress=notes, **settings, **SHORT)
    assert any(re.match(r"All 8 rewards of a step are equal \(0\): nothing can be learned from them", note) for note in notes.said)
    assert all(row["reward/score"] == 0 for row in read_metrics(run))
    assert all(bool(p.isfinite().all()) for p in weights(run).values())


def test_ppo_with_a_reward_model_of_other_tokens_gives_it_the_text_and_says_so_once(toy, tiny_folder, tmp_path):
    other = tmp_path / "other"
    model = with_scalar_head(load_causal_lm(tiny_folder("phi")), seed=2)
    save_reward_model(model, load_renderer(tiny_folder("phi")), other / "model", mean=0.5, deviation=2.0)
    notes = Notes()
    run = toy.run("ppo", reward_model=str(other / "model"), progress=notes, **SHORT)
    assert len([note for note in notes.said if "other tokens" in note]) == 1
    rows = read_metrics(run)
    assert rows[0]["reward/score_sd"] > 0
    assert all(row["reward/failed"] == 0 for row in rows)
    assert load_file(run / "critic.safetensors")  # which reads the policy's tokens, so it is no copy of the reward model
    assert not read_manifest(run)["one_base"]
