"""Compare what answers: draw or read the answers, have them judged, say what it comes to, and keep it in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.data.store import Store
from preftune.errors import ConfigError
from preftune.evaluate.contenders import Answers, Contender, answers_of
from preftune.evaluate.instructions import Asked
from preftune.evaluate.judging import Judge, PeopleJudge, ServedJudge, family_of, insist_on_verdicts
from preftune.evaluate.moved import moved
from preftune.evaluate.versus import Compared, beforehand, board, pairs_of_names, stand, with_people
from preftune.evaluate.versus_words import said_beforehand
from preftune.manifest import MANIFEST, begin, content_seed, read_manifest, write_json
from preftune.progress import Progress, Silent
from preftune.records import Prompt

COMPARISON, SAMPLES = "comparison.json", "answers.jsonl"


def compare_models(
    who: Sequence[Contender],
    prompts: Sequence[Prompt],
    *,
    judge: Judge | None = None,
    people: Store | None = None,
    asked: Sequence[Asked] = (),
    out: Path = Path("reports"),
    max_new_tokens: int = 512,
    seed: int = 0,
    drift: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Return a folder that says how `who` compare on these prompts: `comparison.json`, and every answer with its verdicts.

    The first contender is A; the second is what drift is measured from. judge: None = drift alone. people: a store whose judgements on the
    same answers say how far the judge can be believed. asked: the instructions in the prompts. drift: also measure KL, entropy and looks.
    Raises ConfigError where the same one is given twice, DataError where answers or verdicts are lacking.
    """
    progress = progress or Silent()
    _insist_on_different(who)
    inputs = {one.name: one.identity for one in who} | {"prompts": f"{content_seed(*[p.id for p in prompts]):016x}"}
    config: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "drift": drift}
    config |= {"judge": judge.identity if judge else None, "people": people.fingerprint() if people else None, "asked": bool(asked)}
    final, work = begin(out, "comparison", inputs, config)
    if work is None:
        return final
    if judge is not None:
        progress.note(said_beforehand(beforehand(len(prompts))))
    who = with_templates(who)
    settings: dict[str, Any] = {"out": out, "max_new_tokens": max_new_tokens, "seed": seed, "progress": progress}
    answers = [answers_of(one, prompts, sampled=drift and one.is_model, **settings) for one in who]
    result: dict[str, Any] = {"contenders": [one.name for one in who], "prompts": len(prompts)}
    compared = _judged(prompts, answers, judge, progress) if judge is not None else []
    result |= _told(compared, prompts, answers, who, judge, people, seed) if judge is not None else {"judge": None}
    reference = 1 if len(who) > 1 else 0
    result["drift"] = moved(who, answers, reference=reference, asked=asked, progress=progress) if drift and len(prompts) > 1 else None
    write_json(work.path / COMPARISON, result)
    _write_samples(work.path / SAMPLES, prompts, answers, compared)
    return work.finish(final)


def read_comparison(folder: Path) -> dict[str, Any]:
    """Return what a folder of `compare_models` says."""
    return dict(json.loads((folder / COMPARISON).read_text(encoding="utf-8")))


def _insist_on_different(who: Sequence[Contender]) -> None:
    seen: dict[str, str] = {}
    for one in who:
        if one.identity in seen:
            raise ConfigError(f"{one.name} is compared with itself (it is the same as {seen[one.identity]})", "--against", "Give another.")
        seen[one.identity] = one.name


def with_templates(who: Sequence[Contender]) -> list[Contender]:
    """Return the contenders, a model without a chat template with that of a run among them."""
    runs = [one.path for one in who if one.is_model and one.path is not None and (one.path / MANIFEST).exists()]
    return [replace(one, chat_template=_template(one.path, runs)) if one.is_model and one.path not in runs else one for one in who]


def _template(path: Path | None, runs: Sequence[Path]) -> str | None:
    if path is None or not runs:
        return None
    from preftune.models.load import template_for_base

    return next((found for run in runs if (found := template_for_base(path, run))), None)


def _judged(prompts: Sequence[Prompt], answers: Sequence[Answers], judge: Judge, progress: Progress) -> list[Compared]:
    pairs = pairs_of_names([own.name for own in answers])
    found = []
    with progress.stage(f"judged by {judge.name}", len(pairs), "pairs of models") as task:
        for i, j in pairs:
            a, b = answers[i], answers[j]
            rows = judge.compare(prompts, a, b)
            insist_on_verdicts(rows, judge.name, a.name, b.name)
            found.append(Compared(a.name, b.name, a.texts, b.texts, rows))
            task.advance()
    return found


def _told(
    compared: Sequence[Compared],
    prompts: Sequence[Prompt],
    answers: Sequence[Answers],
    who: Sequence[Contender],
    judge: Judge,
    people: Store | None,
    seed: int,
) -> dict[str, Any]:
    pairs = stand(compared, seed=seed)
    if people is not None and not isinstance(judge, PeopleJudge):
        by_name = {own.name: own for own in answers}
        asked = PeopleJudge(people)
        for one, result in zip(compared, pairs, strict=True):
            result["people"] = with_people(one, asked.majority(prompts, by_name[one.a], by_name[one.b]), seed=seed)
    return {
        "judge": judge.name,
        "beforehand": beforehand(len(prompts)),
        "pairs": pairs,
        "leaderboard": board(compared, seed=seed) if len(answers) > 2 else None,
        "notes": [*judge.notes, *_kin(judge, who)],
    }


def _kin(judge: Judge, who: Sequence[Contender]) -> list[str]:
    """Return warnings where a judge reads answers of its own family, which judges tend to prefer."""
    if not isinstance(judge, ServedJudge):
        return []
    own = family_of(judge.settings.model)
    kin = [one.name for one in who if own and family_of(*_names(one)) == own]
    if not kin or len(kin) == len(who):
        return []
    return [f"the judge is a {own}, and so is {' and '.join(kin)}: judges tend to prefer their own family. Ask another one too"]


def _names(one: Contender) -> list[str]:
    if one.endpoint is not None:
        return [one.endpoint.model]
    assert one.path is not None
    path, names = one.path, [one.path.name]
    while (path / MANIFEST).exists() and "model" in (config := read_manifest(path).get("config", {})):
        path = path.resolve().parent.parent / config["model"]
        names.append(path.name)
    if (path / "config.json").exists():
        names.append(str(json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type", "")))
    return names


def _write_samples(path: Path, prompts: Sequence[Prompt], answers: Sequence[Answers], compared: Sequence[Compared]) -> None:
    said: dict[int, list[dict[str, Any]]] = {}
    for one in compared:
        for row in one.rows:
            said.setdefault(row.prompt, []).append(
                {"a": one.a, "b": one.b, "verdict": row.verdict, "a_first": row.a_first, "b_first": row.b_first}
            )
    with path.open("w", encoding="utf-8") as file:
        for place, prompt in enumerate(prompts):
            told = {"prompt": prompt.text, "id": prompt.id, "answers": {own.name: own.texts[place] for own in answers}}
            file.write(json.dumps({**told, "verdicts": said.get(place, [])}, ensure_ascii=False) + "\n")
