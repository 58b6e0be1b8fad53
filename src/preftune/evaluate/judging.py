"""Who says which of two answers is better: a reward model, a program, a judge behind a URL (in both orders), or people.

A verdict is about the first contender's answer: 1 better, 0.5 tie, 0 worse, None where there is none. Answers that are alike are a tie, and
nobody is asked about them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from preftune.errors import ConfigError, DataError
from preftune.evaluate.contenders import Answers
from preftune.evaluate.orders import Verdict, settle
from preftune.manifest import MANIFEST, hash_file, hash_folder, read_manifest
from preftune.progress import Progress, counted
from preftune.records import Candidate, Judgement, Prompt, pairs_of, standing

if TYPE_CHECKING:
    from preftune.data.store import Store
    from preftune.rollout.rewards.source import JudgeSettings
    from preftune.rollout.score import Scorer

FAMILIES = (
    "claude command deepseek gemini gemma glm gpt granite grok hermes internlm kimi llama mistral mixtral nemotron olmo phi qwen smollm yi"
)
FAMILY = re.compile(rf"(?<![a-z])({'|'.join(FAMILIES.split())})(?![a-z])", re.IGNORECASE)
BLOCK = 16  # prompts at a time, so that progress is seen


@dataclass(frozen=True)
class Row:
    """One comparison of two answers to a prompt, given by its number. b_first: with the second answer shown first, where it was asked.

    alike: the answers are the same text.
    """

    prompt: int
    a_first: Verdict
    b_first: Verdict = None
    twice: bool = False
    alike: bool = False

    @property
    def verdict(self) -> Verdict:
        """The one verdict of both orders, or of the one that was asked."""
        return settle(self.a_first, self.b_first) if self.twice else self.a_first


class Judge(Protocol):
    """Who judges. name: for people to read. identity: what makes two the same. notes: what was worth saying."""

    name: str
    identity: dict[str, Any]
    notes: list[str]

    def compare(self, prompts: Sequence[Prompt], a: Answers, b: Answers) -> list[Row]:
        """Return the comparisons of two contenders' answers."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


@dataclass
class RewardJudge:
    """A run of train reward (an ensemble: the mean of its heads) or of train dpo: the higher score wins.

    An answer that was cut gets the fixed low score that it has in PPO where a reward model judges. What is too long is not judged.
    """

    run: Path
    progress: Progress
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.run.exists():
            raise ConfigError("there is no such run", str(self.run), "Give a run of train reward or of train dpo.")
        kind = read_manifest(self.run)["kind"] if (self.run / MANIFEST).exists() else "reward"
        if kind not in ("reward", "dpo"):
            raise ConfigError(f"a {kind} folder gives no score", str(self.run), "Give a run of train reward, or of train dpo.")
        self.name = f"the reward of {self.run}"
        self.identity: dict[str, Any] = {"reward": hash_folder(self.run)}
        self._scaled = kind == "reward"  # the implicit reward of a DPO run has no scale on which a low score could be fixed
        self._known: dict[str, list[float | None]] = {}

    @cached_property
    def _scorer(self) -> Scorer:
        from preftune.rollout.score import load_scorer

        return load_scorer(self.run)

    def compare(self, prompts: Sequence[Prompt], a: Answers, b: Answers) -> list[Row]:
        """Return which scores higher of each two."""
        return _by_score(self.scores(prompts, a), self.scores(prompts, b), a, b)

    def scores(self, prompts: Sequence[Prompt], answers: Answers) -> list[float | None]:
        """Return the score of each answer in sd, None where it cannot be read."""
        if answers.name not in self._known:
            groups = [(prompt, [text]) for prompt, text in zip(prompts, answers.texts, strict=True)]
            found = [own[0] if own else None for own in self.score_all(groups, f"scores of {Path(answers.name).name}")]
            self._known[answers.name] = [self._cut(s, done) for s, done in zip(found, answers.finished, strict=True)]
            cut = sum(not done for done in answers.finished)
            if cut:
                self.notes.append(f"{counted(cut, 'answers')} of {answers.name} were cut at the limit")
        return self._known[answers.name]

    def _cut(self, score: float | None, finished: bool) -> float | None:
        from preftune.rollout.score import NO_END_SCORE

        return NO_END_SCORE if score is not None and not finished and self._scaled else score

    def score_all(self, groups: Sequence[tuple[Prompt, Sequence[str]]], what: str) -> list[list[float] | None]:
        """Return the scores of each prompt's answers, None where one of them is longer than the model reads."""
        from preftune.data.batches import Group

        renderer, found = self._scorer.renderer, []
        with self.progress.stage(what, len(groups), "prompts") as task:
            for start in range(0, len(groups), BLOCK):
                block: list[Group | None] = []
                for place, (prompt, texts) in enumerate(groups[start : start + BLOCK]):
                    ids, answers = tuple(renderer.prompt_ids(prompt.messages)), tuple(tuple(renderer.completion_ids(t)) for t in texts)
                    fits = len(ids) + max(map(len, answers)) <= self._scorer.max_tokens
                    block.append(Group(ids, answers, place) if fits else None)
                read = [group for group in block if group is not None]
                scores = self._scorer.standardised(read).reshape(sum(len(g.completions) for g in read), -1).mean(1).tolist() if read else []
                flat = iter(scores)
                found += [[next(flat) for _ in group.completions] if group is not None else None for group in block]
                task.advance(len(block))
        return found

    def close(self) -> None:
        """Let the model go."""
        self.__dict__.pop("_scorer", None)


@dataclass
class ProgramJudge:
    """A Python function "file.py:name" as for rewards: the answer that it gives the higher number wins."""

    path: Path
    function: str
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from preftune.rollout.rewards.function import FunctionReward

        if not self.path.exists():
            raise ConfigError("there is no such file", str(self.path), 'Give "file.py:function".')
        self.name = f"the program {self.path}:{self.function}"
        self.identity: dict[str, Any] = {"program": hash_file(self.path), "function": self.function}
        self._reward = FunctionReward(self.path, self.function, seconds=60)
        self._known: dict[str, list[float | None]] = {}

    def compare(self, prompts: Sequence[Prompt], a: Answers, b: Answers) -> list[Row]:
        """Return which gets the higher number of each two."""
        return _by_score(self._scores(prompts, a), self._scores(prompts, b), a, b)

    def _scores(self, prompts: Sequence[Prompt], answers: Answers) -> list[float | None]:
        from preftune.rollout.rewards.asking import Ask

        if answers.name not in self._known:
            rows = enumerate(zip(prompts, answers.texts, answers.finished, strict=True))
            facts = [{key: value for key, value in {"kind": p.kind, "check": p.check}.items() if value} for p in prompts]
            asks = [Ask(prompt.messages, text, (), done, i, facts[i]) for i, (prompt, text, done) in rows]
            given = self._reward.score(asks, [])
            for place, why in list(given.failures.items())[:1]:
                self.notes.append(
                    f"{self.function} fails on {len(given.failures)} answers of {answers.name}; first, it {why} (prompt {place})"
                )
            values = given.scores.tolist()
            self._known[answers.name] = [None if i in given.failures else values[i] for i in range(len(values))]
        return self._known[answers.name]

    def close(self) -> None:
        """End its process."""
        self._reward.close()


def _by_score(ours: Sequence[float | None], theirs: Sequence[float | None], a: Answers, b: Answers) -> list[Row]:
    rows = []
    for place, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        alike = a.texts[place] == b.texts[place]
        verdict = 0.5 if alike else None if x is None or y is None else 0.5 if x == y else float(x > y)
        rows.append(Row(place, verdict, alike=alike))
    return rows


@dataclass
class ServedJudge:
    """A judge behind a URL, asked about each two answers in both orders. cache: where its verdicts are kept."""

    settings: JudgeSettings
    cache: Path
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from preftune.rollout.rewards.judge import JudgeReward

        self.name = f"{self.settings.model} at {self.settings.url}"
        self.identity: dict[str, Any] = self.settings.model_dump(
            mode="json", exclude={"concurrency", "api_key_env", "max_calls", "max_tokens"}
        )
        self._judge = JudgeReward(self.settings, cache=self.cache, run="evaluate", where="judge")

    def compare(self, prompts: Sequence[Prompt], a: Answers, b: Answers) -> list[Row]:
        """Return its verdicts in both orders."""
        from preftune.rollout.rewards.judge_words import comparing, read_better

        criteria = self.settings.criteria
        asked = [
            None if x == y else (comparing(p.messages, x, y, criteria), comparing(p.messages, y, x, criteria))
            for p, x, y in zip(prompts, a.texts, b.texts, strict=True)
        ]
        verdicts, why = self._judge.verdicts([question for two in asked if two for question in two], read_better)
        for reason in list(why[q] for q in why if q not in verdicts)[:1]:
            self.notes.append(f"where the judge gave no verdict, it for example {reason}")
        return [
            Row(place, 0.5, alike=True) if two is None else Row(place, verdicts.get(two[0]), _turned(verdicts.get(two[1])), twice=True)
            for place, two in enumerate(asked)
        ]

    def close(self) -> None:
        """Close the cache."""
        self._judge.close()


def _turned(verdict: Verdict) -> Verdict:
    return None if verdict is None else 1 - verdict


@dataclass
class PeopleJudge:
    """People, by the judgements of a store on just these answers; each standing one counts, and those of a prompt are a cluster."""

    store: Store
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = "people"
        self.identity: dict[str, Any] = {"store": self.store.fingerprint()}
        self._said: dict[str, list[Judgement]] | None = None

    def compare(self, prompts: Sequence[Prompt], a: Answers, b: Answers) -> list[Row]:
        """Return what people said of the answers, a row a judgement."""
        if self._said is None:
            self._said = {prompt.id: _of_people(judgements) for prompt, judgements, _ in self.store.judged()}
        rows = []
        for place, (prompt, x, y) in enumerate(zip(prompts, a.texts, b.texts, strict=True)):
            first, second = (Candidate(prompt_id=prompt.id, text=text).id for text in (x, y))
            if x == y:
                rows.append(Row(place, 0.5, alike=True))
                continue
            for judgement in self._said.get(prompt.id, []):
                if {first, second} <= {name for tier in judgement.ranking for name in tier}:
                    said = set(pairs_of(judgement))
                    rows.append(Row(place, 1.0 if (first, second) in said else 0.0 if (second, first) in said else 0.5))
        return rows

    def majority(self, prompts: Sequence[Prompt], a: Answers, b: Answers) -> dict[int, float]:
        """Return what most people said of each prompt that people judged: 1, 0, or 0.5 where they are even."""
        by_prompt: dict[int, list[float]] = {}
        for row in self.compare(prompts, a, b):
            if not row.alike and row.verdict is not None:
                by_prompt.setdefault(row.prompt, []).append(row.verdict)
        means = {place: sum(said) / len(said) for place, said in by_prompt.items()}
        return {place: 0.5 if mean == 0.5 else float(mean > 0.5) for place, mean in means.items()}

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def _of_people(judgements: Sequence[Judgement]) -> list[Judgement]:
    return [j for j in standing(judgements) if j.ranking and j.picked_by != "reward"]


def family_of(*names: str) -> str | None:
    """Return the family of models that a name speaks of, such as "qwen", or None."""
    found = [match.group(1).lower() for name in names for match in FAMILY.finditer(name)]
    return found[0] if found else None


def insist_on_verdicts(rows: Sequence[Row], judge: str, a: str, b: str) -> None:
    """Raise DataError where nobody has judged anything."""
    if not any(row.verdict is not None for row in rows):
        fix = "Let people compare them first: preftune compare A B." if judge == "people" else "See what it says of each answer."
        raise DataError(f"there is no verdict on any answer of {a} and {b}", judge, fix)
