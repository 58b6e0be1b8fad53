"""How far models moved from one that they are compared with: KL, entropy, and what their answers look like.

KL of a model from the reference, over its own answers at temperature 1: the mean over prompts of Σ (log p − log reference), in nats
an answer (the estimator k1). It needs two models that give probabilities to the same tokens; where their vocabularies differ, or one is
a URL or a file, it is not measured, and the reason is told in its place. Entropy: the mean of −log p a token, over the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preftune.evaluate.contenders import Answers, Contender
from preftune.evaluate.drift import drift
from preftune.evaluate.instructions import Asked, following, follows
from preftune.evaluate.statistics import bootstrap_mean, paired_difference
from preftune.progress import Progress


def moved(
    who: Sequence[Contender], answers: Sequence[Answers], *, reference: int, asked: Sequence[Asked] = (), progress: Progress
) -> list[dict[str, Any]]:
    """Return the measures of each contender as plain values, with their changes from the reference's (its place among them).

    asked: the instructions in each prompt, where the prompts have such.
    """
    found = []
    for place, own in enumerate(answers):
        before = answers[reference].texts if place != reference else None
        result: dict[str, Any] = {"name": own.name, "looks": drift(own.texts, before), "entropy": _entropy(own)}
        if asked:
            result["following"] = following(own.texts, asked) | _gain(own.texts, before, asked)
        if place != reference:
            result |= _kl(who[place], own, who[reference], progress)
        found.append(result)
    return found


def _entropy(answers: Answers) -> dict[str, Any] | None:
    rows = [row for row in answers.sampled if row.ids]
    if len(rows) < 2:
        return None
    # By answer, each with the mean over its tokens, so that long ones do not drown the rest.
    return asdict(bootstrap_mean([-sum(row.logprobs) / len(row.logprobs) for row in rows]))


def _gain(texts: Sequence[str], before: Sequence[str] | None, asked: Sequence[Asked]) -> dict[str, Any]:
    """Return the change in the share of instructions that are followed, with those of one prompt as a cluster."""
    if before is None:
        return {}
    rows = []
    for place, (new, old, one) in enumerate(zip(texts, before, asked, strict=True)):
        for name, given in one.instructions:
            now, then = follows(new, name, given), follows(old, name, given)
            if now is not None and then is not None:
                rows.append((float(then), float(now), place))
    if len({place for *_, place in rows}) < 2:
        return {}
    change = paired_difference([then for then, _, _ in rows], [now for _, now, _ in rows], [place for *_, place in rows])
    return {"change": asdict(change)}


def _kl(model: Contender, own: Answers, reference: Contender, progress: Progress) -> dict[str, Any]:
    if not model.is_model or not reference.is_model:
        lacking = next(one.name for one in (model, reference) if not one.is_model)
        return {"kl": None, "kl_why": f"{lacking} gives no log-probs here, so there is no KL"}
    assert model.path is not None
    assert reference.path is not None
    why = other_tokens(model.path, reference.path)
    if why or len(own.sampled) < 2:
        return {"kl": None, "kl_why": why or "no answers were drawn at temperature 1"}
    return {"kl": asdict(bootstrap_mean(_distances(reference, own, progress))), "kl_why": None}


def other_tokens(one: Path, other: Path) -> str | None:
    """Return a sentence where two models do not read the same tokens, so that their log-probs cannot be compared, else None."""
    from preftune.models.load import load_tokenizer

    first, second = (load_tokenizer(path).get_vocab() for path in (one, other))
    if first == second:
        return None
    shared = len(first.keys() & second.keys())
    return f"{one} and {other} have other vocabularies ({len(first):,} and {len(second):,} tokens, {shared:,} shared), so there is no KL"


def _distances(reference: Contender, own: Answers, progress: Progress) -> list[float]:
    import torch

    from preftune.data.batches import Group
    from preftune.evaluate.subject import Subject
    from preftune.losses.kl import k1

    assert reference.path is not None
    subject = Subject(reference.path, chat_template=reference.chat_template)
    groups = [Group(row.prompt, (row.ids,), place) for place, row in enumerate(own.sampled)]
    with progress.stage(f"KL of {Path(own.name).name}", len(groups), "answers") as task:
        theirs, mask = subject.token_logprobs(groups)
        task.advance(len(groups))
    ours = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.logprobs) for row in own.sampled], batch_first=True)
    return [float(value) for value in k1(ours, theirs, mask).sum(1)]
