"""What comes before a policy learns from its own samples; PPO and the group methods share it.

    for each step:
        sample samples_per_prompt completions of prompts_per_step prompts from the policy (temperature, no top-k, no top-p)
        score each by the reward model and what else is rewarded (rollout/rewards), in sd of the reference's own scores;
        one that did not end by itself gets no_eos_score, one that could not be scored is marked and teaches nothing
        log π and log ref of every token, by the trainer's own forward pass

So the first ratio is 1. The sampler's own log-probs are compared with the trainer's, and the run stops where they differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preftune.data.batches import Encoded, Group, shuffled
from preftune.data.rows import Rows
from preftune.errors import DataError, PreftuneError
from preftune.losses.kl import k1, k3
from preftune.losses.scores import Moments, add_missing_end, replace_missing_end, with_values
from preftune.manifest import content_seed, disk_errors, hash_folder, read_manifest
from preftune.models.adapter import adapter_off, trainable
from preftune.models.load import batch_logprobs, device_of, find, load_causal_lm
from preftune.models.one_base import ON_BASE, reward_role
from preftune.parallel import world
from preftune.progress import Progress
from preftune.rollout.client import Sampler, Sampling, Start
from preftune.rollout.generate import Sample
from preftune.rollout.reward_probes import known_findings
from preftune.rollout.rewards.asking import Ask, facts_of
from preftune.rollout.rewards.source import with_reward_model
from preftune.rollout.rewards.total import open_rewards
from preftune.rollout.score import token_table
from preftune.stages.common import Room
from preftune.stages.online_config import OnlineConfig
from preftune.training.health import findings, text_metrics
from preftune.training.loop import SAMPLES, Loop, read_metrics
from preftune.training.plan import steps_of
from preftune.training.step import Loss, Step, micro_batches, train_step

SAMPLER_GAP = 0.05  # nats; a wrong temperature or mask is far above, float32 arithmetic far below
NO_SPREAD = 1e-6  # scores of one step that spread less than this, relative to their size, are all equal
FIRST_KL = 1e-3  # nats a token, half the square of 4.5 %; what bfloat16 makes of 1 is far below
SAMPLES_KEPT = 4  # texts a step, for the report


@dataclass(frozen=True)
class Draw:
    """One step's completions: `groups` in order, each one's `index` its place here; `samples` and `scores` (float32 [S], sd) in theirs.

    failed: bool [S], those that could not be scored; their score is the mean of the others of their prompt, which makes no difference
    within it. told: what the rewards say for the log.
    """

    groups: list[Group]
    samples: list[Sample]
    scores: Tensor
    failed: Tensor | None = field(default=None, kw_only=True)
    told: dict[str, float] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Experience(Draw):
    """A draw with its log-probs, [S, N] by completion, left-aligned, on the CPU; behaviour: of the policy that sampled."""

    behaviour_logprobs: Tensor
    ref_logprobs: Tensor
    mask: Tensor
    sampler_gap: float

    def rows(self, table: Tensor, groups: Sequence[Group], like: Tensor) -> Tensor:
        """Return the rows of these groups' completions in a table [S, N], cut to the width of `like` and on its device."""
        starts = [0]
        for group in self.groups:
            starts.append(starts[-1] + len(group.completions))
        rows = [row for group in groups for row in range(starts[group.index], starts[group.index + 1])]
        return table[rows, : like.shape[1]].to(like.device)

    def kl(self) -> Tensor:
        """Return log π − log ref of each completion, nats, [S]: k1 summed over its tokens."""
        return k1(self.behaviour_logprobs, self.ref_logprobs, self.mask).sum(1)


class Rollouts:
    """What a step's experience is made with: policy, reference and reward model."""

    def __init__(self, config: OnlineConfig, room: Room, progress: Progress) -> None:
        self.config, self.room = config, room
        device = device_of(room.model)
        self.facts = facts_of(room.snapshot)
        # From the same base, the reward model is an adapter and a head on the policy's, which is then in memory once.
        self.one_base = shares_base(config, room)
        named = config.reward_model
        reward_model = reward_role(room.model, find(named, room.project) / ON_BASE) if named is not None and self.one_base else None
        self.rewards = open_rewards(
            with_reward_model(config.rewards, config.reward_model),
            project=room.project,
            renderer=room.renderer,
            progress=progress,
            device=device,
            token_budget=config.token_budget,
            run=str(content_seed(config.model_dump_json(exclude={"rollout"}))),  # wherever the samples are drawn
            facts=self.facts,
            loaded={named: reward_model} if named is not None and reward_model is not None else {},
        )
        for name in {name: None for source in self.rewards.sources for name in source.models}:
            for finding in known_findings(find(name, room.project)):
                progress.note(f"The reward model {name} {finding}.")
        self.sampler = Sampler(
            config.rollout,
            room.model,
            Start(room.base, config.adapter),
            Sampling(config.samples_per_prompt, config.max_new_tokens, config.temperature, room.renderer.stop_ids, room.renderer.pad_id),
            progress.note,
        )
        # Without an adapter to switch off, the reference is a second, frozen copy of the start.
        whole = config.adapter is None
        self.reference = load_causal_lm(find(config.model, room.project), device=device).requires_grad_(False) if whole else None

    def draw(self, groups: Sequence[Group], step: int, state: dict[str, Any], *, again: int = 0) -> Draw:
        """Sample completions of these prompts and score them.

        state: the loop's; the unit of the scores is kept there. again: how often this step has drawn before.
        """
        config = self.config
        samples = self.sampler.draw(
            [g.prompt for g in groups],
            [str(g.index) for g in groups],
            seed=content_seed(config.seed, step, *([again] if again else [])),
            version=step,
        )
        k = config.samples_per_prompt
        drawn = [Group(g.prompt, tuple(s.ids for s in samples[i * k : (i + 1) * k]), i) for i, g in enumerate(groups)]
        scored = self.rewards.score(self._asks(groups, samples), drawn)
        finished = torch.tensor([s.finished for s in samples])
        known = scored.total[finished & ~scored.failed]
        _set_unit(state, known if len(known) > 1 else scored.total[~scored.failed], config.scoring.unit)
        scores = _shaped((scored.total - state["mean"]) / state["sd"], finished, config)
        failed = scored.failed & finished
        return Draw(drawn, samples, _filled(scores, failed, k), failed=failed, told=scored.metrics() | self.sampler.health())

    def kept_open(self, steps: Iterable[int]) -> Iterator[int]:
        """Yield the steps, and give back at their end what the sampler holds elsewhere."""
        try:
            yield from steps
        finally:
            self.sampler.close()

    def _asks(self, groups: Sequence[Group], samples: Sequence[Sample]) -> list[Ask]:
        prompts = self.room.snapshot.prompts
        return [
            Ask(prompts[at].messages, self.room.renderer.decode(sample.ids), sample.ids, sample.finished, at, self.facts[at])
            for sample in samples
            for at in (groups[sample.prompt_index].index,)
        ]

    def measure(self, draw: Draw, where: str, *, once: bool = False) -> Experience:
        """Take the log-probs of a draw. where: for the error. Raises PreftuneError where the sampler's own are others.

        once: the sampler's are taken, since the one optimiser step that learns from them has the trainer's beside it (`sampler_gap`).
        """
        room, gap = self.room, 0.0
        logprobs = torch.nn.utils.rnn.pad_sequence([torch.tensor(s.logprobs) for s in draw.samples], batch_first=True)
        ref_logprobs, mask = self._reference(draw.groups)
        if not once:
            sampled = logprobs
            logprobs, _ = self.policy_logprobs(draw.groups)
            gap = sampler_gap(logprobs, sampled, mask, room, where)
        return Experience(draw.groups, draw.samples, draw.scores, logprobs, ref_logprobs, mask, gap, failed=draw.failed, told=draw.told)

    def policy_logprobs(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """Return (log π of each completion token [S, N], mask [S, N]) of the policy as it is now."""
        return self.table(lambda b: batch_logprobs(self.room.model, b, temperature=self.config.temperature)[0], groups)

    def table(self, compute: Callable[[Any], Tensor], groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """Return (what `compute` says of each completion token [S, N], mask [S, N]) on the CPU."""
        room = self.room
        return token_table(
            compute,
            groups,
            device=device_of(room.model),
            pad_id=room.renderer.pad_id,
            token_budget=self.config.token_budget,
            tree=room.tree,
        )

    def _reference(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        model = self.reference or self.room.model
        with nullcontext() if self.reference is not None else adapter_off(self.room.model):
            return self.table(lambda b: batch_logprobs(model, b, temperature=self.config.temperature)[0], groups)


def sampler_gap(logprobs: Tensor, sampled: Tensor, mask: Tensor, room: Room, where: str) -> float:
    """Return by how much the trainer's and the sampler's log-prob of a token differ at most, nats. Raises PreftuneError on too much."""
    gap = float(torch.where(mask, logprobs - sampled, 0.0).abs().max())
    if gap > SAMPLER_GAP and room.model.dtype == torch.float32:
        raise PreftuneError(
            f"sampler and trainer disagree on a token's log-prob by {gap:.3f} nats",
            where,
            "One of temperature, mask, positions or dropout differs between them: report this with the model's name.",
        )
    return gap


def shares_base(config: OnlineConfig, room: Room) -> bool:
    """Say whether the reward model is a LoRA adapter trained on the very model that the policy starts from, with one of its own."""
    if config.reward_model is None:
        return False
    run = find(config.reward_model, room.project)
    plain = config.adapter is not None and config.adapter.kind != "qlora"  # on a base in 4 bits its scores would be others
    return plain and (run / ON_BASE).exists() and bool(read_manifest(run)["inputs"]["model"] == hash_folder(room.base))


def _set_unit(state: dict[str, Any], raw: Tensor, unit: str) -> None:
    # The first step's samples come from the reference itself: their mean and sd make the score's unit, so that
    # kl_coef and no_eos_score mean the same on every reward. Where they are all alike, the unit is the reward's own.
    if unit == "start" and "mean" in state:
        return
    mean, deviation = float(raw.mean()), float(raw.std(correction=int(len(raw) > 1)))
    if unit == "running":
        seen = with_values(Moments(*state.get("seen", ())), raw)
        state["seen"], mean, deviation = list(astuple(seen)), seen.mean, seen.deviation
    state["mean"], state["sd"] = mean, deviation if deviation > NO_SPREAD * max(1.0, abs(mean)) else 1.0
    if unit == "own":
        state["mean"], state["sd"] = 0.0, 1.0


def _shaped(scores: Tensor, finished: Tensor, config: OnlineConfig) -> Tensor:
    scoring = config.scoring
    if scoring.clip is not None:
        scores = scores.clamp(-scoring.clip, scoring.clip)
    missing_end = replace_missing_end if scoring.missing_end == "replace" else add_missing_end
    return missing_end(scores, finished, no_eos_score=config.no_eos_score)


def _filled(scores: Tensor, failed: Tensor, samples_per_prompt: int) -> Tensor:
    """Return the scores with the mean of the others of its prompt in place of one that is none; 0 where there are no others."""
    if not failed.any():
        return scores
    rows, lost = scores.view(-1, samples_per_prompt), failed.view(-1, samples_per_prompt)
    known = (~lost).sum(1, keepdim=True)
    means = torch.where(lost, 0.0, rows).sum(1, keepdim=True) / known.clamp(min=1)
    return torch.where(lost, means, rows).flatten()


def learnable(draw: Draw) -> Draw:
    """Return the draw without the samples that could not be scored, and without prompts that have none left."""
    if draw.failed is None or not draw.failed.any():
        return draw
    keep = iter((~draw.failed).tolist())
    groups = [replace(group, completions=tuple(c for c in group.completions if next(keep))) for group in draw.groups]
    left = [group for group in groups if group.completions]
    samples = [sample for sample, lost in zip(draw.samples, draw.failed.tolist(), strict=True) if not lost]
    numbered = [replace(group, index=place) for place, group in enumerate(left)]
    return replace(draw, groups=numbered, samples=samples, scores=draw.scores[~draw.failed], failed=None)


def prompts_of(config: OnlineConfig, room: Room) -> Encoded:
    """Return the snapshot's prompts that leave room for a completion, as groups without one. Raises DataError where none does."""
    encoded, groups = Encoded(), Rows[Group]()
    for index, prompt in enumerate(room.snapshot.prompts):
        try:
            ids, dropped = room.renderer.fit_prompt(prompt.messages, room.max_tokens - config.max_new_tokens)
        except DataError:
            encoded.left_out["prompt too long"] += 1
            continue
        encoded.turns_dropped += dropped
        groups.append(Group(tuple(ids), (), index))
    encoded.groups = groups
    if not groups:
        raise DataError("no prompt fits", config.data, "Raise max_tokens or lower max_new_tokens.")
    return encoded


def minibatches(config: OnlineConfig, groups: Sequence[Group], step: int) -> Iterator[list[Group]]:
    """Yield a step's groups minibatch by minibatch, epoch by epoch, each epoch in an order of its own (by the seed)."""
    for epoch in range(config.epochs):
        order = shuffled(len(groups), seed=content_seed(config.seed, step) % 2**31, epoch=epoch)
        size = -(-len(order) // config.minibatches)
        for at in range(0, len(order), size):
            yield [groups[i] for i in order[at : at + size]]


def optimise(
    config: OnlineConfig,
    groups: Sequence[Group],
    *,
    count: Callable[[list[Group]], float],
    loss: Callable[[list[Group]], Loss],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    lr: float,
    where: str,
) -> Step:
    """Do one optimiser step on a minibatch of groups, cut by the token budget. count: the total weight of a part."""
    return train_step(
        micro_batches(groups, config.token_budget),
        count=count,
        loss=loss,
        parameters=trainable(model).values(),
        optimiser=optimiser,
        lr=lr,
        max_grad_norm=config.max_grad_norm,
        where=where,
        name_batch=lambda part: "prompts " + ", ".join(str(g.index) for g in part),
    )


def learned_tokens(groups: Sequence[Group]) -> float:
    """Return how many completion tokens these groups have."""
    return float(sum(g.num_completion_tokens for g in groups))


def insist_on_ratio_1(ratio: float, where: str, *, approx_kl: float = 0.0) -> None:
    """Raise PreftuneError unless the policy that learns first is the one that sampled.

    ratio: the mean over tokens, in which some above and some below could make 1. approx_kl: half their mean squared log-ratio, which
    they cannot make 0.
    """
    if abs(ratio - 1) > 0.02 or approx_kl > FIRST_KL:
        raise PreftuneError(f"the first ratio is {ratio:.4f} and not 1", where, "Is dropout on? Report this.")


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the optimiser steps of a round."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def health(experience: Experience) -> dict[str, float]:
    """Return what a step's samples say of the policy that wrote them."""
    finished = [s.finished for s in experience.samples]
    lengths = [len(s.ids) for s in experience.samples]
    return {
        "reward/score": float(experience.scores.mean()),
        "kl/reference": float(experience.kl().mean()),
        "length/completion": sum(lengths) / len(lengths),
        "length/finished": sum(finished) / len(finished),
        "reward/score_sd": float(experience.scores.std(correction=0)),
        "kl/k3": float(k3(experience.behaviour_logprobs, experience.ref_logprobs, experience.mask).sum(1).mean()),
        "policy/sampler_gap": experience.sampler_gap,
        **text_metrics([sample.ids for sample in experience.samples]),
        **experience.told,
    }


def watch(loop: Loop, config: OnlineConfig, *, kl_target: float | None = None) -> str | None:
    """Say each trouble once that the run's rows show, and return the name of one that the run is to stop on."""
    said, texts = loop.state.setdefault("troubles", []), loop.state.setdefault("warnings", [])
    found = world.from_main(lambda: findings(read_metrics(loop.work.path), kl_target=kl_target))
    for trouble in found:
        if trouble.name not in said:
            said.append(trouble.name)
            texts.append(trouble.text)
            loop.progress.note(trouble.text)
    stop = next((trouble.name for trouble in found if trouble.name in config.stop_on), None)
    if stop is not None:
        loop.progress.note(f'Stopped after step {loop.done} of {loop.total}, since stop_on names "{stop}".')
    return stop


def keep_samples(folder: Path, step: int, experience: Experience, room: Room) -> None:
    """Append some of a step's texts to samples.jsonl, with their scores and log-ratios."""
    if not world.is_main():
        return
    kl = experience.kl()
    every = max(1, len(experience.samples) // SAMPLES_KEPT)
    prompts = [group.prompt for group in experience.groups for _ in group.completions]
    with disk_errors(folder), (folder / SAMPLES).open("a", encoding="utf-8") as file:
        for row in range(0, len(experience.samples), every):
            sample = experience.samples[row]
            prompt, text = room.renderer.tokenizer.decode(prompts[row]), room.renderer.decode(sample.ids)
            line = {"step": step + 1, "prompt": prompt, "completion": text, "score": float(experience.scores[row]), "kl": float(kl[row])}
            file.write(json.dumps({**line, "finished": sample.finished}, ensure_ascii=False) + "\n")


def planned_steps(config: OnlineConfig, prompts: Encoded) -> list[list[Group]]:
    """Return the groups of each step for a plan: every completion taken as max_new_tokens long."""
    filler = tuple([0] * config.max_new_tokens)
    steps = steps_of(prompts.groups, steps=config.steps, batch_size=config.prompts_per_step, seed=config.seed)
    return [[Group(g.prompt, (filler,) * config.samples_per_prompt, g.index) for g in step] for step in steps]
