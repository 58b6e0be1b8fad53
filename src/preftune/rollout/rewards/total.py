"""Opens the rewards that a config names, asks each of them, and adds up what they say.

total = Σ weight · score        a reward model in sd of its training answers, rules and judges −1 to 1, a function as it returns
a sample that one of them could not judge is marked failed: it counts in no learning, or stops the run, as `on_error` says
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from preftune.data.batches import Group
from preftune.errors import ConfigError, PreftuneError
from preftune.manifest import hash_folder
from preftune.models.load import find, name_in
from preftune.parallel import world
from preftune.progress import Progress
from preftune.rollout.backends import RayRollout, RolloutConfig
from preftune.rollout.client import insist_on_ray
from preftune.rollout.rewards.asking import Ask, Given, Reward
from preftune.rollout.rewards.source import RewardSource, insist_on_names

if TYPE_CHECKING:
    from preftune.data.template import Renderer

PART = "reward/part/NAME"
# A reward's file and on_error are part of what a run is known by: where they change, it is another run.
FIX = "The same command goes on once the cause is gone. A mended file, or on_error: skip to leave such samples out, begins a new run."
NO_SPREAD = 1e-8  # rewards that differ by less than this, relative to their size, are all equal


@dataclass(frozen=True)
class Scores:
    """The rewards of S completions: total, float32 [S], 0 where failed; parts: what each reward said before its weight; failed: bool [S].

    counts: further numbers to be logged, such as how often a judge could not be understood.
    """

    total: Tensor
    parts: dict[str, Tensor]
    failed: Tensor
    counts: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return what is logged: mean of each part over the samples that count, share failed, and the counts."""
        kept = ~self.failed
        several = len(self.parts) > 1  # else it is the score itself
        means = {PART.replace("NAME", name): float(part[kept].mean()) for name, part in self.parts.items() if several}
        return {**means, "reward/failed": float(self.failed.float().mean()), **self.counts}


class Rewards:
    """Rewards that are open; `close` them (or use `with`) when done."""

    def __init__(self, sources: Sequence[RewardSource], opened: Sequence[Reward], progress: Progress) -> None:
        self.sources, self.opened, self.progress = tuple(sources), tuple(opened), progress
        self._said: set[str] = set()

    def score(self, asks: Sequence[Ask], groups: Sequence[Group]) -> Scores:
        """Return the weighted sum and its parts. groups: the same completions in the policy's tokens, prompt by prompt, in order.

        Raises PreftuneError where a reward with on_error stop could not judge a sample, and where no sample could be judged at all.
        """
        count = len(asks)
        if not count or sum(len(group.completions) for group in groups) != count:
            raise PreftuneError(f"there are {count} completions to judge and {sum(len(g.completions) for g in groups)} in the groups")
        total, failed = torch.zeros(count), torch.zeros(count, dtype=torch.bool)
        parts: dict[str, Tensor] = {}
        counts: dict[str, float] = {"reward/empty": sum(not ask.text.strip() for ask in asks) / count}
        for source, reward in zip(self.sources, self.opened, strict=True):
            # A model's scores are computed by all processes together; a function runs, and a judge is paid, once.
            given = reward.score(asks, groups) if source.kind == "model" else world.from_main(partial(reward.score, asks, groups))
            given = self._checked(source, given, asks)
            for name, number in given.counts.items():
                counts[name] = counts.get(name, 0.0) + number
            parts[source.label] = given.scores
            total += source.weight * given.scores
            if given.failures:
                failed[list(given.failures)] = True
        if bool(failed.all()):
            raise PreftuneError(f"none of the {count} completions could be judged", "rewards", "See the reasons above, then resume.")
        scores = Scores(torch.where(failed, 0.0, total), parts, failed, counts)
        self._warn(scores, asks)
        return scores

    def _checked(self, source: RewardSource, given: Given, asks: Sequence[Ask]) -> Given:
        scores, failures = given.scores.float(), dict(given.failures)
        for place in (~scores.isfinite()).nonzero().flatten().tolist():
            failures.setdefault(place, f"gives {float(scores[place])}")
        if failures:
            first = min(failures)
            what = f'the reward "{source.label}" {failures[first]} for {asks[first].place(first, len(asks))}'
            if source.on_error == "stop":
                raise PreftuneError(what, "rewards", FIX)
            self._say(f"failed {source.label}", f"{what}. Such samples are left out ({len(failures)} of {len(asks)} here).")
        kept = torch.ones(len(asks), dtype=torch.bool)
        kept[list(failures)] = False
        return Given(torch.where(kept, scores, 0.0), failures, given.counts)

    def _warn(self, scores: Scores, asks: Sequence[Ask]) -> None:
        kept = scores.total[~scores.failed]
        if len(kept) > 1 and float(kept.max() - kept.min()) <= NO_SPREAD * max(1.0, float(kept.abs().max())):
            self._say("constant", f"All {len(kept)} rewards of a step are equal ({float(kept[0]):.4g}): nothing can be learned from them.")
        for name, part in scores.parts.items():
            own = part[~scores.failed]
            if len(scores.parts) > 1 and len(own) > 1 and bool((own == own[0]).all()):
                self._say(f"constant {name}", f'The reward "{name}" says {float(own[0]):.4g} of every answer of a step.')
        empty = sum(not ask.text.strip() for ask in asks)
        if empty:
            self._say("empty", f"{empty} of {len(asks)} answers are empty; they are judged like any other.")

    def _say(self, about: str, sentence: str) -> None:
        # Once a run: the metrics hold how often.
        if about not in self._said:
            self._said.add(about)
            self.progress.note(sentence)

    def close(self) -> None:
        """Let go of models, processes and files."""
        with ExitStack() as stack:
            for reward in self.opened:
                stack.callback(reward.close)

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_rewards(
    sources: Sequence[RewardSource],
    *,
    project: Path,
    renderer: Renderer,
    progress: Progress,
    device: torch.device,
    token_budget: int = 2048,
    run: str = "",
    facts: Sequence[Mapping[str, Any]] | None = None,
    loaded: Mapping[str, nn.Module] | None = None,
    rollout: RolloutConfig | None = None,
) -> Rewards:
    """Open every source; what is wrong with one is said here, before anything is sampled.

    project: what relative paths are looked for in, and where a judge's verdicts are kept (cache/judge.db). renderer: the policy's.
    loaded: reward models that are in memory already, by the name that a source gives them.
    run: whose budget a judge's calls count in. facts: those of all prompts, to see that no rule asks for what none of them has.
    rollout: where samples are drawn; with `score_workers` all but models are asked there.
    """
    insist_on_names(sources)
    if facts is not None and any(source.rule == "tests" for source in sources) and not any(known.get("check") for known in facts):
        fix = 'Take a snapshot whose prompts carry a "check", or leave this reward out.'
        raise ConfigError("none of the prompts has a check that could be run", 'key "rewards", rule "tests"', fix)
    with ExitStack() as stack:
        opened: list[Reward] = []
        elsewhere = _elsewhere(sources, project, run, rollout)
        for source in sources:
            reward = elsewhere.get(source.label) or _opened(source, project, renderer, progress, device, token_budget, run, loaded or {})
            stack.callback(reward.close)
            opened.append(reward)
        stack.pop_all()
    return Rewards(sources, opened, progress)


def _opened(
    source: RewardSource,
    project: Path,
    renderer: Renderer,
    progress: Progress,
    device: torch.device,
    token_budget: int,
    run: str,
    loaded: Mapping[str, nn.Module],
) -> Reward:
    if source.kind != "model":
        return open_plain(source, project, run, progress)
    from preftune.rollout.rewards.models import ModelReward
    from preftune.rollout.score import load_scorer

    scorers = [load_scorer(find(name, project), device=device, model=loaded.get(name)) for name in source.models]
    return ModelReward(scorers, renderer, source.uncertainty, progress, token_budget=token_budget)


def _elsewhere(sources: Sequence[RewardSource], project: Path, run: str, rollout: RolloutConfig | None) -> dict[str, Reward]:
    """Return, by their labels, the sources that Ray actors are asked for."""
    plain = [source for source in sources if source.kind != "model"]
    if not isinstance(rollout, RayRollout) or not rollout.score_workers or not plain:
        return {}
    insist_on_ray()
    from preftune.rollout.rewards.elsewhere import RewardElsewhere, Scorers

    made: list[Scorers] = []
    world.from_main(lambda: made.append(Scorers(rollout, plain, project, run)))
    scorers = made[0] if made else None
    return {source.label: RewardElsewhere(scorers, number, by_one=source.kind == "judge") for number, source in enumerate(plain)}


def open_plain(source: RewardSource, project: Path, run: str, progress: Progress) -> Reward:
    """Open a source that needs no model of ours: a function, a rule or a judge. As `open_rewards` says."""
    match source.kind:
        case "function":
            from preftune.rollout.rewards.function import FunctionReward

            path, _, name = str(source.function).rpartition(":")
            return FunctionReward(find(path, project), name, seconds=source.seconds or 60.0)
        case "judge":
            from preftune.rollout.rewards.judge import JudgeReward

            assert source.judge is not None
            return JudgeReward(source.judge, cache=project / "cache" / "judge.db", run=run)
        case _:
            from preftune.rollout.rewards.rules import RuleReward

            return RuleReward(source, progress)


def resolve_sources(sources: Sequence[RewardSource], project: Path) -> tuple[tuple[RewardSource, ...], dict[str, str]]:
    """Return the sources with paths as manifests hold them, and the hash of each model and file: another one is another run.

    Raises ConfigError where one is not there. Of a function its own file is hashed, not what that imports.
    """
    insist_on_names(sources)
    found: list[RewardSource] = []
    hashes: dict[str, str] = {}
    for number, source in enumerate(sources):
        key = f"rewards.{number}"
        if source.models:
            paths = [_there(name, project, f"{key}.model") for name in source.models]
            names = tuple(name_in(path, project) for path in paths)
            hashes |= {f"{key}.model.{place}": hash_folder(path) for place, path in enumerate(paths)}
            source = source.model_copy(update={"model": names if isinstance(source.model, tuple) else names[0]})
        if source.function:
            file, _, name = source.function.rpartition(":")
            path = _there(file, project, f"{key}.function")
            hashes[f"{key}.function"] = hash_folder(path)
            source = source.model_copy(update={"function": f"{name_in(path, project)}:{name}"})
        found.append(source)
    return tuple(found), hashes


def _there(name: str, project: Path, key: str) -> Path:
    path = next((p for p in (Path(name), find(name, project)) if p.exists()), None)
    if path is None:
        raise ConfigError(f'there is no "{name}"', f'key "{key}"', "Give a folder or file that is there.")
    return path
