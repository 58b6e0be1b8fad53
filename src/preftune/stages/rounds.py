"""What PPO and the group methods share once a step's samples are there: its optimiser steps, and what is told and kept of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from preftune.data.batches import Encoded, Group, shuffled
from preftune.errors import PreftuneError
from preftune.losses.kl import k3
from preftune.manifest import content_seed, disk_errors
from preftune.models.adapter import trainable
from preftune.parallel import world
from preftune.stages.common import Room
from preftune.stages.experience import Experience
from preftune.stages.online_config import OnlineConfig
from preftune.training.health import findings, text_metrics
from preftune.training.loop import SAMPLES, Loop, read_metrics
from preftune.training.plan import steps_of
from preftune.training.step import Loss, Step, micro_batches, train_step

FIRST_KL = 1e-3  # nats a token, half the square of 4.5 %; what bfloat16 makes of 1 is far below
SAMPLES_KEPT = 4  # texts a step, for the report


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
        "kl/k3": float(k3(experience.proximal_logprobs, experience.ref_logprobs, experience.mask).sum(1).mean()),
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
