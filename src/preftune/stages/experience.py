"""What comes before a policy learns from its own samples; PPO and the group methods share it.

    for each step:
        sample samples_per_prompt completions of prompts_per_step prompts from the policy (temperature, no top-k, no top-p)
        score each by the reward model and what else is rewarded (rollout/rewards), in sd of the reference's own scores;
        one that did not end by itself gets no_eos_score, one that could not be scored is marked and teaches nothing
        log π and log ref of every token, by the trainer's own forward pass

So the first ratio is 1. The sampler's own log-probs are compared with the trainer's, and the run stops where they differ. Where samples
are drawn elsewhere, perhaps with older weights (rollout.max_staleness), what differs is weighed (losses/mismatch.py) and told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from preftune.data.batches import Encoded, Group, batch_indices
from preftune.data.rows import Rows
from preftune.errors import DataError, PreftuneError
from preftune.losses.kl import k1
from preftune.losses.mismatch import Mismatch, mismatch, truncated_weights
from preftune.losses.policy import policy_ratio
from preftune.losses.scores import Moments, add_missing_end, replace_missing_end, with_values
from preftune.manifest import content_seed, hash_folder, read_manifest
from preftune.models.adapter import adapter_off
from preftune.models.load import batch_logprobs, device_of, find, load_causal_lm
from preftune.models.one_base import ON_BASE, reward_role
from preftune.progress import Progress
from preftune.rollout.ahead import Ahead, Wait
from preftune.rollout.backends import LocalRollout, VllmRollout
from preftune.rollout.client import Sampler, Sampling, Start
from preftune.rollout.generate import Sample
from preftune.rollout.reward_probes import known_findings
from preftune.rollout.rewards.asking import Ask, facts_of
from preftune.rollout.rewards.source import with_reward_model
from preftune.rollout.rewards.total import open_rewards
from preftune.rollout.score import token_table
from preftune.stages.common import Room
from preftune.stages.online_config import OnlineConfig

RatioOf = Callable[[Tensor, Tensor, Tensor], Tensor]  # of (log-probs, those of the sampling policy, mask), all [S, N]

SAMPLER_GAP = 0.05  # nats; a wrong temperature or mask is far above, float32 arithmetic far below
NO_SPREAD = 1e-6  # scores of one step that spread less than this, relative to their size, are all equal


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
    """A draw with its log-probs, [S, N] by completion, left-aligned, on the CPU.

    proximal: of the policy before it learns from this step, by the trainer. behaviour: of the policy that sampled, which was perhaps an
    older one, by the sampler. mismatch: between these two, where both are there already.
    """

    proximal_logprobs: Tensor
    ref_logprobs: Tensor
    behaviour_logprobs: Tensor
    mask: Tensor
    mismatch: Mismatch | None

    def rows(self, table: Tensor, groups: Sequence[Group], like: Tensor) -> Tensor:
        """Return the rows of these groups' completions in a table [S, N], cut to the width of `like` and on its device."""
        starts = [0]
        for group in self.groups:
            starts.append(starts[-1] + len(group.completions))
        rows = [row for group in groups for row in range(starts[group.index], starts[group.index + 1])]
        return table[rows, : like.shape[1]].to(like.device)

    def kl(self) -> Tensor:
        """Return log π − log ref of each completion, nats, [S]: k1 summed over its tokens."""
        return k1(self.proximal_logprobs, self.ref_logprobs, self.mask).sum(1)


class Rollouts:
    """What a step's experience is made with: policy, reference and reward model."""

    def __init__(self, config: OnlineConfig, room: Room, progress: Progress) -> None:
        self.config, self.room = config, room
        self.prompts = prompts_of(config, room)
        self.elsewhere = not isinstance(config.rollout, LocalRollout)
        # What the trainer's own processes draw is the very policy that learns: there is nothing to weigh.
        self.cap = None if isinstance(config.rollout, LocalRollout) else config.rollout.importance_cap
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
            rollout=config.rollout,
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
        self.ahead = Ahead(self._begin, staleness=config.rollout.max_staleness, total=config.steps)
        # Without an adapter to switch off, the reference is a second, frozen copy of the start.
        whole = config.adapter is None
        self.reference = load_causal_lm(find(config.model, room.project), device=device).requires_grad_(False) if whole else None

    def places(self, step: int) -> list[int]:
        """Return the places of a step's prompts among all."""
        return batch_indices(len(self.prompts.groups), self.config.prompts_per_step, step, seed=self.config.seed)

    def _begin(self, batch: int, version: int) -> Wait:
        prompts, keys, seed = self._asked([self.prompts.groups[i] for i in self.places(batch)], batch)
        return self.sampler.begin(prompts, keys, seed=seed, version=version)

    def _asked(self, groups: Sequence[Group], step: int, *more: int) -> tuple[list[tuple[int, ...]], list[str], int]:
        return [g.prompt for g in groups], [str(g.index) for g in groups], content_seed(self.config.seed, step, *more)

    def draw(self, places: Sequence[int], step: int, state: dict[str, Any], *, again: int = 0) -> Draw:
        """Sample completions of the prompts at these places and score them.

        At first a step's own places, with the weights that its batch is to have (rollout/ahead.py); again, which is how often this step has
        drawn before, any others, with the policy as it is. state: the loop's; the unit of the scores is kept there.
        """
        config, began = self.config, time.monotonic()
        groups = [self.prompts.groups[i] for i in places]
        if again or not self.ahead.staleness:
            prompts, keys, seed = self._asked(groups, step, *([again] if again else []))
            samples = self.sampler.draw(prompts, keys, seed=seed, version=step)
        else:
            samples = self.ahead.take(step)
        told = self.sampler.health()
        if self.elsewhere:
            told |= {"rollout/staleness": float(step - samples[0].version), "rollout/wait_seconds": time.monotonic() - began}
        k = config.samples_per_prompt
        drawn = [Group(g.prompt, tuple(s.ids for s in samples[i * k : (i + 1) * k]), i) for i, g in enumerate(groups)]
        scored = self.rewards.score(self._asks(groups, samples), drawn)
        finished = torch.tensor([s.finished for s in samples])
        known = scored.total[finished & ~scored.failed]
        _set_unit(state, known if len(known) > 1 else scored.total[~scored.failed], config.scoring.unit)
        scores = _shaped((scored.total - state["mean"]) / state["sd"], finished, config)
        failed = scored.failed & finished
        return Draw(drawn, samples, _filled(scores, failed, k), failed=failed, told=scored.metrics() | told)

    def keep(self, state: dict[str, Any]) -> None:
        """Put into the loop's state, before it is saved, what is drawn ahead of the steps that are done."""
        self.ahead.keep(state)

    def kept_open(self, steps: Iterable[int]) -> Iterator[int]:
        """Yield the steps, and give back at their end what the sampler and the rewards hold elsewhere."""
        try:
            yield from steps
        finally:
            self.sampler.close()
            self.rewards.close()

    def _asks(self, groups: Sequence[Group], samples: Sequence[Sample]) -> list[Ask]:
        prompts = self.room.snapshot.prompts
        return [
            Ask(prompts[at].messages, self.room.renderer.decode(sample.ids), sample.ids, sample.finished, at, self.facts[at])
            for sample in samples
            for at in (groups[sample.prompt_index].index,)
        ]

    def measure(self, draw: Draw, step: int, where: str, *, once: bool = False, ratio_of: RatioOf = policy_ratio) -> Experience:
        """Take the log-probs of a draw. where: for the error. Raises PreftuneError where the sampler's own are others.

        once: the sampler's are taken, since the one optimiser step that learns from them has the trainer's beside it (`compare`); of none
        but samples that the policy as it is now has drawn. ratio_of: what the method weighs a token by.
        """
        sampled = torch.nn.utils.rnn.pad_sequence([torch.tensor(s.logprobs) for s in draw.samples], batch_first=True)
        ref_logprobs, mask = self._reference(draw.groups)
        old, found = sampled, None
        if not once:
            old, _ = self.policy_logprobs(draw.groups)
            found = self.compare(old, sampled, mask, where, ratio_of=ratio_of, stale=any(s.version != step for s in draw.samples))
        tables = old, ref_logprobs, sampled, mask
        return Experience(draw.groups, draw.samples, draw.scores, *tables, found, failed=draw.failed, told=draw.told)

    def compare(
        self, logprobs: Tensor, sampled: Tensor, mask: Tensor, where: str, *, ratio_of: RatioOf = policy_ratio, stale: bool = False
    ) -> Mismatch:
        """Return how far the sampler's log-probs are from the trainer's. Raises PreftuneError where they differ and are of one policy."""
        found = mismatch(logprobs, sampled, ratio_of(logprobs, sampled, mask), mask, cap=self.cap)
        if not stale and self.room.model.dtype == torch.float32:
            insist_on_one_policy(found, where, engine=isinstance(self.config.rollout, VllmRollout))
        return found

    def told(self, found: Mismatch) -> dict[str, float]:
        """Return what a step's metrics say of the sampler and the trainer."""
        return {"policy/sampler_gap": found.largest, **(found.told() if self.elsewhere else {})}

    def weighed(self, losses: Tensor, old: Tensor, sampled: Tensor, mask: Tensor, *, ratio_of: RatioOf = policy_ratio) -> Tensor:
        """Return the policy's loss of each token, [S, N], weighed for its having been drawn by another policy than learns."""
        if self.cap is None:
            return losses
        return losses * truncated_weights(ratio_of(old, sampled, mask), mask, cap=self.cap)

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


def insist_on_one_policy(found: Mismatch, where: str, *, engine: bool) -> None:
    """Raise PreftuneError where sampler and trainer cannot have the same policy.

    engine: another's, which may compute in another dtype, so that single tokens differ by more: it is held to the mean.
    """
    gap = found.mean if engine else found.largest
    if gap > SAMPLER_GAP:
        what = f"the log-probs of sampler and trainer are {gap:.3f} nats apart in the mean" if engine else ""
        raise PreftuneError(
            what or f"sampler and trainer disagree on a token's log-prob by {gap:.3f} nats",
            where,
            "One of temperature, mask, positions or dropout differs between them: report this with the model's name.",
        )


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
