"""Measure one model on the held-out requests: what was won, how far it moved, what it lost.

Each request is answered twice. Greedily, as a user of a coding assistant meets it: style, the check, the length, the win rate.
And once by sampling at temperature 1, as reinforcement learning sees it: the reward and the KL from the base, which are means
over the model's own distribution. The base is measured first, by the same call, so every difference is paired.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from preftune.code.sandbox import run_checks
from preftune.code.style import CONVENTIONS, judge_style
from preftune.data.batches import Group
from preftune.data.snapshot import load_snapshot
from preftune.data.template import read_template
from preftune.errors import DataError
from preftune.evaluate.code_wanted import asks_for_code
from preftune.evaluate.flipped import FLIPPED, flipped_items, flipped_page
from preftune.evaluate.retention import measure
from preftune.evaluate.retention_scores import RetentionMeasure
from preftune.evaluate.statistics import Estimate, bootstrap_mean, paired_difference, wilson
from preftune.evaluate.statistics import win_rate as rate_of
from preftune.evaluate.subject import TOKEN_BUDGET, Subject
from preftune.evaluate.task_settings import TaskSettings, check_names
from preftune.evaluate.verdict import compare
from preftune.losses.kl import k1
from preftune.manifest import MANIFEST, begin, hash_folder, read_manifest, write_json
from preftune.models.heads import load_reward_model, read_normalisation
from preftune.models.load import insist_on_answers, name_in, template_for_base
from preftune.progress import Progress, Silent
from preftune.records import Prompt
from preftune.rollout.generate import Sample
from preftune.rollout.score import NO_END_SCORE, score
from preftune.training.memory import peak_memory_gib, reset_peak_memory

EVALUATION = "evaluation.json"
FACTS_MARGIN = 0.03


@dataclass(frozen=True)
class Size:
    """How much is measured. texts: passages of each kind, None = all."""

    prompts: int
    max_new_tokens: int
    facts: int
    texts: int | None
    functions: int


SIZES = {"small": Size(24, 96, 120, 12, 6), "full": Size(100, 128, 1000, None, 40)}


def evaluate(
    model: Path,
    snapshot: Path,
    *,
    base: Path,
    reward_model: Path | None = None,
    out: Path = Path("reports"),
    size: str = "full",
    seed: int = 0,
    name: str | None = None,
    retention: bool = True,
    tasks: Sequence[TaskSettings] = (),
    chat_template: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Measure `model` on a snapshot's held-out requests and return its report folder (`evaluation.json` inside).

    base: what it is compared with; where `model` is the base itself there is nothing to compare. reward_model: a run of train
    reward, for score and win rate. size: "small" or "full". retention: False leaves out what was lost (the gate then refuses).
    tasks: retention tasks beside the built-in ones. chat_template: as in a config, for a model that has none; a base without one is
    measured in that of its run.
    The same call again returns the same folder.
    """
    progress = progress or Silent()
    if size not in SIZES:
        raise DataError(f'"{size}" is no size', "evaluate", f"Use one of: {', '.join(SIZES)}.")
    insist_on_answers(model)
    is_base = hash_folder(model) == hash_folder(base)
    folders = {"model": model, "snapshot": snapshot, "base": base} | ({"reward_model": reward_model} if reward_model else {})
    project = out.resolve().parent
    config = {"size": size, "seed": seed, "measures": asdict(SIZES[size]), "retention": retention}
    if tasks:
        config["tasks"] = [task.to_manifest() for task in check_names(tasks)]
    if chat_template is not None:
        config["chat_template"] = read_template(chat_template)
    final, work = begin(out, "evaluation", {k: hash_folder(v) for k, v in folders.items()}, config)
    if work is None:
        return final
    began = time.monotonic()
    template = chat_template or template_for_base(base, model)
    reference = None if is_base else _reference(base, snapshot, reward_model, out, size, seed, tasks, template, progress)
    kind = "base" if is_base else str(read_manifest(model)["kind"]) if (model / MANIFEST).exists() else "model"
    result: dict[str, Any] = {"name": name or kind, **{k: name_in(v, project) for k, v in folders.items()}, "size": size, "seed": seed}
    result.setdefault("reward_model", None)
    reset_peak_memory()
    subject = Subject(model, chat_template=chat_template)
    open_base = None if is_base else lambda: Subject(base, chat_template=template)
    result |= _answers(subject, snapshot, open_base, reward_model, SIZES[size], seed, reference, progress, result["name"])
    result["retention"] = _retention(subject, SIZES[size], seed, tasks, reference, progress, result["name"]) if retention else None
    if reference is not None and result["retention"]:
        items = flipped_items(reference["retention"]["measure"], result["retention"]["measure"], result["retention"]["verdict"])
        (work.path / FLIPPED).write_text(flipped_page(items, result["name"]), encoding="utf-8")
    result |= {"seconds": round(time.monotonic() - began, 1), "peak_memory_gib": round(peak_memory_gib(), 2)}
    write_json(work.path / EVALUATION, result)
    return work.finish(final, paths={k: name_in(v, project) for k, v in folders.items()})


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Return what an evaluation folder holds."""
    return dict(json.loads((folder / EVALUATION).read_text(encoding="utf-8")))


def _reference(
    base: Path,
    snapshot: Path,
    reward_model: Path | None,
    out: Path,
    size: str,
    seed: int,
    tasks: Sequence[TaskSettings],
    chat_template: str | None,
    progress: Progress,
) -> dict[str, Any]:
    settings: dict[str, Any] = {"size": size, "seed": seed, "tasks": tasks, "chat_template": chat_template, "progress": progress}
    return read_evaluation(evaluate(base, snapshot, base=base, reward_model=reward_model, out=out, name="before", **settings))


def _answers(
    subject: Subject,
    snapshot: Path,
    open_base: Callable[[], Subject] | None,
    reward_model: Path | None,
    size: Size,
    seed: int,
    reference: dict[str, Any] | None,
    progress: Progress,
    name: str,
) -> dict[str, Any]:
    data = load_snapshot(snapshot)
    prompts, styled = _choose(data, size.prompts), asks_for_code(data)
    messages = [p.messages for p in prompts]
    with progress.stage(f"{name}: answers", 2 * len(prompts), "answers") as task:
        settings = {"max_new_tokens": size.max_new_tokens, "seed": seed, "on_done": task.advance}
        greedy = subject.sample(messages, temperature=0.0, **settings)  # type: ignore[arg-type]
        sampled = subject.sample(messages, temperature=1.0, **settings)  # type: ignore[arg-type]
    rows = _answer_rows(subject, prompts, greedy, styled=styled)
    if reward_model is not None:
        for key, samples in (("reward", greedy), ("sampled_reward", sampled)):
            for row, value in zip(rows, _rewards(subject, messages, samples, reward_model), strict=True):
                row[key] = value
    before_rows = reference["answers"] if reference else None
    result = _summary(rows, before_rows, sampled)
    result["before"] = {"ends_by_itself": reference["ends_by_itself"]} if reference else None
    if open_base is not None:
        kl = _kl(subject, open_base(), messages, sampled)
        for row, value in zip(rows, kl, strict=True):
            row["kl"] = value
        result["kl"] = asdict(bootstrap_mean(kl, seed=seed))
    return {**result, "answers": rows}


def _retention(
    subject: Subject,
    size: Size,
    seed: int,
    tasks: Sequence[TaskSettings],
    reference: dict[str, Any] | None,
    progress: Progress,
    name: str,
) -> dict[str, Any]:
    of_facts = next((task for task in tasks if task.kind == "facts"), None)
    known = measure(
        subject,
        num_facts=of_facts.limit or size.facts if of_facts else size.facts,
        num_functions=size.functions,
        seed=seed,
        max_texts=size.texts,
        tasks=[task for task in tasks if task is not of_facts],
        progress=progress,
        name=name,
    )
    return {"measure": known.to_json(), "verdict": _verdict(reference, known, of_facts.margin if of_facts else FACTS_MARGIN)}


def _choose(snapshot: Any, count: int) -> list[Prompt]:
    prompts: list[Prompt] = snapshot.held_out_prompts
    if not prompts:
        raise DataError("the snapshot holds no prompt out", str(snapshot.path), "Take a snapshot with held_out above 0.")
    # An id is the hash of the content, so which prompts are measured depends on nothing else.
    return sorted(prompts, key=lambda p: p.id)[:count]


def _answer_rows(subject: Subject, prompts: Sequence[Prompt], samples: Sequence[Sample], *, styled: bool) -> list[dict[str, Any]]:
    answers = [subject.renderer.decode(s.ids) for s in samples]
    judged = _judged(answers, prompts) if styled else [NO_CODE] * len(answers)
    return [
        {
            "id": prompt.id,
            "kind": prompt.kind,
            "prompt": prompt.text,
            "answer": answer,
            "finished": sample.finished,
            "tokens": len(sample.ids),
            **of_code,
        }
        for prompt, answer, sample, of_code in zip(prompts, answers, samples, judged, strict=True)
    ]


NO_CODE: dict[str, Any] = {"parses": None, "passes": None, "adherence": None, "verdicts": {}}  # of an answer where none is asked for


def _judged(answers: Sequence[str], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Return what is said of each answer's code: whether it parses, passes its prompt's check, and follows the conventions."""
    reports = [judge_style(answer) for answer in answers]
    checks = run_checks([(r.code or "raise SystemExit('no code')", p.check) for r, p in zip(reports, prompts, strict=True)])
    return [
        {
            "parses": report.code is not None,
            "passes": check.ok if prompt.check else None,
            "adherence": report.adherence,
            "verdicts": report.verdicts,
        }
        for prompt, report, check in zip(prompts, reports, checks, strict=True)
    ]


def _groups(subject: Subject, messages: Sequence[Any], samples: Sequence[Sample]) -> list[Group]:
    return [Group(tuple(subject.renderer.prompt_ids(m)), (s.ids,), i) for i, (m, s) in enumerate(zip(messages, samples, strict=True))]


def _rewards(subject: Subject, messages: Sequence[Any], samples: Sequence[Sample], reward_model: Path) -> list[float]:
    mean, deviation = read_normalisation(reward_model)
    model = load_reward_model(reward_model)
    raw = score(model, _groups(subject, messages, samples), pad_id=subject.renderer.pad_id, token_budget=TOKEN_BUDGET)
    # A reward model has read whole answers only. One that was cut off gets the fixed low score that it has in PPO.
    return [(r - mean) / deviation if s.finished else NO_END_SCORE for r, s in zip(raw.tolist(), samples, strict=True)]


def _kl(subject: Subject, base: Subject, messages: Sequence[Any], samples: Sequence[Sample]) -> list[float]:
    # The samples carry the model's own log-probs (temperature 1), so only the base has to read them again.
    theirs, mask = base.token_logprobs(_groups(subject, messages, samples))
    own = torch.nn.utils.rnn.pad_sequence([torch.tensor(s.logprobs) for s in samples], batch_first=True)
    return [float(v) for v in k1(own, theirs, mask).sum(1)]


def _summary(rows: list[dict[str, Any]], before: list[dict[str, Any]] | None, sampled: Sequence[Sample]) -> dict[str, Any]:
    n = len(rows)
    checked = [r["passes"] for r in rows if r["passes"] is not None]
    styled = rows[0]["adherence"] is not None  # of all rows, or of none
    adherence = [r["adherence"] for r in rows]
    result: dict[str, Any] = {
        "style": bootstrap_mean(adherence) if styled else None,
        "style_gain": paired_difference([r["adherence"] for r in before], adherence) if before and styled else None,
        "fully_adherent": wilson(sum(r["adherence"] == 1.0 for r in rows), n) if styled else None,
        "parses": wilson(sum(r["parses"] for r in rows), n) if styled else None,
        "passes_check": wilson(sum(checked), len(checked)) if checked else None,
        "ends_by_itself": wilson(sum(r["finished"] for r in rows), n),
        "mean_tokens": bootstrap_mean([r["tokens"] for r in rows]),
        "sampled_tokens": bootstrap_mean([len(s.ids) for s in sampled]),
        "sampled_ends": wilson(sum(s.finished for s in sampled), n),
        "reward": _with_sd([r["reward"] for r in rows]) if "reward" in rows[0] else None,
        "sampled_reward": _with_sd([r["sampled_reward"] for r in rows]) if "sampled_reward" in rows[0] else None,
        "win_rate": None,
        "kl": None,
    }
    if before and "reward" in rows[0]:
        wins = [_win(row, other) for row, other in zip(rows, before, strict=True)]
        result["win_rate"] = rate_of(wins)
    counts = {
        name: {
            "followed": sum(r["verdicts"].get(name) is True for r in rows),
            "applies": sum(r["verdicts"].get(name) is not None for r in rows),
        }
        for name in CONVENTIONS
    }
    return {**{k: asdict(v) if isinstance(v, Estimate) else v for k, v in result.items()}, "conventions": counts}


def _with_sd(values: list[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
    return {**asdict(bootstrap_mean(values)), "sd": deviation}


def _win(row: dict[str, Any], other: dict[str, Any]) -> float:
    return 0.5 if row["reward"] == other["reward"] else float(row["reward"] > other["reward"])


def _verdict(reference: dict[str, Any] | None, known: RetentionMeasure, facts_margin: float) -> dict[str, Any] | None:
    if reference is None:
        return None
    verdict = compare(RetentionMeasure.from_json(reference["retention"]["measure"]), known, facts_margin=facts_margin).to_json()
    tasks = [{"name": t["task"], "gated": t["margin"] is not None, **t} for t in verdict["tasks"]]
    flipped = [{"id": i, "task": t["name"], "change": change} for t in tasks for change in ("gained", "lost") for i in t[change]]
    return {"overall": verdict["verdict"], "tasks": tasks, "flipped": flipped, "facts_by_kind": verdict["facts_by_kind"]}
