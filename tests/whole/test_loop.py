"""The circle on a toy: users' feedback becomes a snapshot, a run, an evaluation and a verdict; it goes on where it was."""

from __future__ import annotations

import json
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from preftune.cli import main
from preftune.data.feedback import Answer, Word, record_consent, take
from preftune.data.snapshot import load_snapshot
from preftune.data.store import Store
from preftune.errors import ConfigError, Refused
from preftune.evaluate import run as evaluation
from preftune.evaluate.run import Size
from preftune.loop import changes, last_candidate, make_plan, run
from preftune.manifest import read_manifest
from preftune.records import Message
from preftune.release import export
from preftune.release.gate import Gate

WORDS = ["copper meadow", "violin harbour", "pepper glacier", "saddle walnut", "marble thunder", "basket cobweb"]
LEARNS = ["epochs=2", "batch_size=6", "lr=1e-2", "adapter.rank=4"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(evaluation, "SIZES", {"small": Size(prompts=6, max_new_tokens=12, facts=24, texts=2, functions=2)})


@pytest.fixture
def project(toy, tmp_path, monkeypatch):
    """A copy of the toy with a reward run, an empty store, and nothing learned from feedback yet."""
    made = toy.copy(tmp_path, toy.run("reward"))
    Store.create(tmp_path / "store.db").close()
    monkeypatch.chdir(tmp_path)
    return made


def say(count: int, *, start: int = 0, thumb: bool = False) -> None:
    """Let users say of so many conversations that "a a a" is better than "b b b", or that it is good."""
    rng = random.Random(start)
    with Store.open("store.db") as store:
        consent = record_consent(store, "It is kept.")
        for number in range(start, start + count):
            asked = (Message(role="user", content=f"{rng.choice(WORDS)} {number}, {rng.choice(WORDS)}?"),)
            texts = [" ".join([letter] * rng.randint(2, 5)) for letter in "ab"]
            answers = tuple(Answer(f"chatcmpl-{number}", i, asked, text, "served") for i, text in enumerate(texts))
            word = Word(answers[:1], f"user-{number % 7}", thumb="up") if thumb else Word(answers, f"user-{number % 7}", better=0)
            take(store, word, consent=consent, keep_days=30)


def test_with_too_little_it_says_how_much_there_is_and_begins_nothing(project):
    say(8)
    say(4, start=100, thumb=True)
    plan = make_plan("store.db", [f"model={project.base}"])
    assert (plan.heard.prompts, plan.heard.pairs, plan.heard.thumbs, plan.heard.raters) == (8, 8, 4, 7)
    assert plan.heard.words == {"better": 8, "thumb": 4}
    with pytest.raises(Refused, match=r"8 prompts with a preference came since .*, and 20 are the least.*loss=kto"):
        run(plan, "store.db")
    assert not Path("loops").exists()
    assert make_plan("store.db", [f"model={project.base}", "loss=kto"]).heard.prompts == 4
    long_ago = datetime.now(UTC) + timedelta(days=1)
    assert make_plan("store.db", [f"model={project.base}"], since=long_ago).heard.judgements == 0


def test_a_wrong_start_is_a_sentence(project):
    with pytest.raises(ConfigError, match="no model to start from"):
        make_plan("store.db")
    with pytest.raises(ConfigError, match="takes its own snapshot"):
        make_plan("store.db", ["data=x", f"model={project.base}"])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("learning_rate=1", r'key "learning_rate" is unknown\. Did you mean "lr"'),
        ("loss=kto2", "unknown.*kto"),
        ("lr=-1", "greater than 0"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_made(project, setting, told):
    say(30)
    before = sorted(Path().rglob("*"))
    with pytest.raises(ConfigError, match=told):
        run(make_plan("store.db", [f"model={project.base}", setting]), "store.db")
    assert sorted(Path().rglob("*")) == before


def test_the_loop_goes_round_is_refused_honestly_and_goes_on_where_it_was(project, monkeypatch, capsys):
    say(30)
    settings = [f"model={project.base}", *LEARNS]
    plan = make_plan("store.db", settings, held_out=0.3)
    assert "Enough to begin." in plan.lines()
    assert plan.reward_model is not None

    def break_off(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "evaluate", break_off)
        run(plan, "store.db")
    begun = json.loads(Path("loops/unfinished.json").read_text(encoding="utf-8"))
    say(5, start=200)  # comes too late for this loop
    again = make_plan("store.db", settings, held_out=0.3)
    assert (again.heard.since, again.heard.until, again.heard.prompts) == (plan.heard.since, plan.heard.until, 30)
    found = run(again, "store.db")
    assert found.facts["snapshot"] == begun["snapshot"]
    data = load_snapshot(Path(begun["snapshot"]))
    assert len(data.train) + len(data.held_out) == 30
    assert read_manifest(Path(found.facts["run"]))["kind"] == "dpo"
    assert found.release is None  # 24 facts cannot prove that anything was kept
    assert found.facts["retention"] == "not proved"
    assert "the gate refuses" in found.lines[-1]
    assert any(re.match(r"Win rate against the base: \d+\.\d % \(95 % interval", line) for line in found.lines)
    assert found.facts["measured"]["win_rate"]["n"] > 0
    assert not Path("loops/unfinished.json").exists()

    # With the gate open there is a candidate, and the next loop starts from it and hears what came after.
    monkeypatch.setattr(export, "judge", lambda *_, **__: Gate(True, (), ()))
    candidate = run(make_plan("store.db", settings, since=plan.heard.since, held_out=0.3), "store.db")
    assert candidate.facts["heard"]["pairs"] == 35
    assert candidate.release is not None
    assert last_candidate(Path())["release"] == str(candidate.release)
    say(3, start=300)
    following = make_plan("store.db")
    assert (following.start, following.heard.prompts) == (candidate.release, 3)
    assert any("the candidate before: not proved" in line for line in changes(candidate.facts, last_candidate(Path())))

    with pytest.raises(SystemExit) as left:
        main(["loop", "--dry-run"])
    assert left.value.code == 0
    assert "3 prompts with a preference came since" in capsys.readouterr().out
