"""The circle: what users said since the last candidate → snapshot → DPO → evaluation → gate → release candidate, and what changed.

    feedback since the last candidate (or of the last days)     refused where there is too little to learn from and to measure by
    snapshots/ID   the judgements of that time alone
    runs/ID        DPO from the model that users judged
    reports/ID     against the model before any tuning
    releases/ID    where the gate lets it through
    loops/ID       loop.json: all of these, and what changed since the loop before

Each step is the function of its own command, so each goes on where it was when the same loop is started again: the window of time, and
the snapshot once it is made, are kept in loops/unfinished.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from preftune.data.feedback import by_kind, rows_since
from preftune.data.filters import Filters
from preftune.data.snapshot import snapshot
from preftune.data.store import Store, pairs_from
from preftune.errors import ConfigError, PreftuneError, Refused
from preftune.manifest import MANIFEST, begin, hash_folder, read_manifest, write_json
from preftune.progress import Progress, Silent, counted
from preftune.records import CHECKS, Judgement, standing

UNFINISHED = "unfinished.json"
RESULT = "loop.json"
LEAST = 20  # below this a share of prompts has an interval of ± 20 points; as `advise` counts


@dataclass(frozen=True)
class Heard:
    """What was said in a window of time. prompts: with something that the loss learns from; words: of users, by kind."""

    since: datetime
    until: datetime
    judgements: int
    raters: int
    pairs: int
    thumbs: int
    prompts: int
    words: dict[str, int]

    def lines(self) -> list[str]:
        """Return it as lines for a person."""
        told = by_kind(self.words) or "none"
        said = f"{counted(self.judgements, 'judgements')} of {counted(self.raters, 'raters')}"
        learned = f"{counted(self.prompts, 'prompts have')} what this loss learns from"
        return [
            f"From {self.since:%Y-%m-%d %H:%M} to {self.until:%Y-%m-%d %H:%M} UTC: {said}.",
            f"Of users of a served model: {told}.",
            f"They give {counted(self.pairs, 'pairs')} and {counted(self.thumbs, 'thumbs')}; {learned}.",
        ]


@dataclass(frozen=True)
class Candidate:
    """What a loop led to. release: None where the gate refused. lines: what changed, for a person."""

    folder: Path
    release: Path | None
    facts: dict[str, Any]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A loop that could begin. start: the model that learns. reward_model: what the win rate is judged by."""

    heard: Heard
    start: Path
    reward_model: Path | None
    settings: tuple[str, ...]
    held_out: float
    least: int
    loss: str

    @property
    def too_little(self) -> str | None:
        """Say why this is not enough to learn from, or None."""
        if self.heard.prompts >= self.least:
            return None
        kind = "a thumb" if self.loss == "kto" else "a preference"
        also = (
            f" There are thumbs, too ({self.heard.thumbs:,}): loss=kto learns from them."
            if self.loss != "kto" and self.heard.thumbs
            else ""
        )
        heard = counted(self.heard.prompts, "prompts")
        return (
            f"{heard} with {kind} came since {self.heard.since:%Y-%m-%d %H:%M}, and {self.least} are the least: "
            f"on fewer, a share has an interval of more than 20 points either way, so nobody could tell what was won.{also}"
        )

    def lines(self) -> list[str]:
        """Return the plan as lines for a person."""
        told = self.reward_model or "no reward model, so the gate can judge the style of code alone (give --reward-model)"
        held = round(self.held_out * self.heard.prompts)
        return [
            *self.heard.lines(),
            f"Start: {self.start}. Judged by: {told}. About {counted(held, 'prompts are')} held out.",
            self.too_little or "Enough to begin.",
        ]


def hear(store: Store, since: datetime, until: datetime, *, loss: str = "dpo") -> Heard:
    """Count what was said from `since` on and before `until`, as a snapshot of that time would take it."""

    def counts(judgement: Judgement) -> bool:
        return since <= judgement.created < until and judgement.picked_by not in CHECKS

    pairs = thumbs = prompts = judgements = 0
    raters: set[str] = set()
    for prompt, said, texts in store.judged():
        kept = [judgement for judgement in standing(said) if counts(judgement)]
        own_pairs = len(list(pairs_from(prompt, kept, texts)))
        own_thumbs = sum(judgement.acceptable is not None for judgement in kept)
        judgements += sum(bool(judgement.ranking) for judgement in kept)
        raters |= {judgement.rater for judgement in kept}
        pairs, thumbs = pairs + own_pairs, thumbs + own_thumbs
        prompts += bool(own_thumbs if loss == "kto" else own_pairs)
    words = Counter(row.kind for row in rows_since(store, since, until))
    return Heard(since, until, judgements, len(raters), pairs, thumbs, prompts, dict(words))


def make_plan(
    store: str,
    settings: Sequence[str] = (),
    *,
    directory: Path = Path(),
    model: str | None = None,
    since: datetime | None = None,
    days: int = 7,
    held_out: float = 0.2,
    least: int = LEAST,
    reward_model: Path | None = None,
) -> Plan:
    """Return what a loop would learn from; an unfinished one of the same settings keeps its window of time.

    settings: of `preftune train dpo`, as key=value. model: where these name none and there is no candidate yet. since: by default the
    time until which the last candidate had heard, or, where there is none, `days` ago. reward_model: by default the newest in runs/.
    Raises ConfigError where no model is named, `data` is, the model or the reward run is not there, or a setting is wrong.
    """
    from preftune.config import load_config, parse_overrides
    from preftune.stages.preference_config import DPOConfig

    named = parse_overrides(settings)
    if "data" in named:
        raise ConfigError("the loop takes its own snapshot", 'key "data"', "Leave it out; --since says what goes in.")
    last = last_candidate(directory)
    start = named.get("model") or (last["release"] if last else None) or model
    if not start:
        raise ConfigError("no model to start from is named", "preftune loop", "Give model=PATH: the one that users judge now.")
    if not Path(start).exists():
        raise ConfigError("there is no such model", str(start), "Give model=PATH: a run, a release, a model folder or a GGUF file.")
    loss = load_config(DPOConfig, None, [*settings, "data=of-the-loop", f"model={start}"], stage="dpo").loss  # before anything is made
    if reward_model is not None and (not reward_model.is_dir() or read_manifest(reward_model)["kind"] != "reward"):
        raise ConfigError("this is no run of train reward", str(reward_model), "Give another as --reward-model, or leave it out.")
    until = datetime.now(UTC)
    if since is not None:
        since = since.replace(tzinfo=UTC) if since.tzinfo is None else since
    elif last is not None:
        since = datetime.fromisoformat(last["heard"]["until"])
    else:
        since = until - timedelta(days=days)
    if (begun := _unfinished(directory, settings, str(start))) is not None:
        since, until = (datetime.fromisoformat(begun[key]) for key in ("since", "until"))
    with Store.open(store) as opened:
        heard = hear(opened, since, until, loss=loss)
    judge = reward_model or _newest(directory / "runs", "reward")
    return Plan(heard, Path(start), judge, tuple(settings), held_out, least, loss)


def run(plan: Plan, store: str, directory: Path = Path(), *, full: bool = False, progress: Progress | None = None) -> Candidate:
    """Go round once and return what it led to. Raises Refused where there is too little to learn from; whatever a step raises."""
    from preftune.config import load_config
    from preftune.evaluate.run import evaluate, read_evaluation
    from preftune.release.export import release
    from preftune.release.gate import judge
    from preftune.stages.kinds import Stage, base_under, stage_functions

    if plan.too_little:
        raise Refused(plan.too_little, "preftune loop", "Wait for more, or look further back with --since.")
    progress = progress or Silent()
    last = last_candidate(directory)
    note = directory / "loops" / UNFINISHED
    begun = _unfinished(directory, plan.settings, str(plan.start)) or _begin(note, plan)
    data = Path(begun["snapshot"]) if begun.get("snapshot") else None
    if data is None or not (data / MANIFEST).exists():
        filters = Filters(since=plan.heard.since, until=plan.heard.until)
        data = snapshot(store, directory / "snapshots", held_out=plan.held_out, filters=filters)
        write_json(note, {**begun, "snapshot": str(data)})
    kind = stage_functions(Stage.dpo)
    settings = [*plan.settings, f"data={data.resolve()}", f"model={plan.start.resolve()}"]
    trained = kind.run(load_config(kind.config, None, settings, stage="dpo"), directory / "runs", progress=progress)
    size = "full" if full else "small"
    report = evaluate(
        trained, data, base=base_under(trained), reward_model=plan.reward_model, out=directory / "reports", size=size, progress=progress
    )
    measured = read_evaluation(report)
    released: Path | None = None
    refused: tuple[str, ...] = ()
    try:
        released = release(trained, report, directory / "releases", progress=progress)
    except Refused as error:
        refused = judge(measured).reasons or (str(error),)
    facts: dict[str, Any] = {
        "heard": plan.heard.__dict__,
        "start": str(plan.start),
        "snapshot": str(data),
        "run": str(trained),
        "evaluation": str(report),
        "release": str(released) if released else None,
        "refused": list(refused),
        "measured": {key: measured.get(key) for key in ("style_gain", "win_rate", "kl")},
        "retention": measured["retention"]["verdict"]["overall"] if measured["retention"] else None,
        "before": last["folder"] if last else None,
    }
    folder = _keep(directory / "loops", trained, report, facts)
    note.unlink(missing_ok=True)
    return Candidate(folder, released, facts, tuple(changes(facts, last)))


def changes(facts: dict[str, Any], last: dict[str, Any] | None) -> list[str]:
    """Return what a loop heard, won and kept, beside the candidate before, as lines for a person."""
    from preftune.release.gate import nats, percent, points

    judgements, raters, pairs, thumbs = (counted(facts["heard"][what], what) for what in ("judgements", "raters", "pairs", "thumbs"))
    lines = [f"New: {judgements} of {raters}, {pairs}, {thumbs}."]
    for name, key, told in (
        ("Gain in style over the base", "style_gain", points),
        ("Win rate against the base", "win_rate", percent),
        ("KL from the base", "kl", nats),
    ):
        here, there = (told(of["measured"][key]) if of and of["measured"][key] else "not measured" for of in (facts, last))
        before = f"; the candidate before: {there}" if last else ""
        lines.append(f"{name}: {here}{before}.")
    before = f"; the candidate before: {last['retention']}" if last else ""
    lines.append(f"Retention: {facts['retention'] or 'not measured'}{before}.")
    if facts["release"]:
        lines.append(f"Verdict: the gate lets it through. Candidate: {facts['release']}")
    else:
        lines.append(f"Verdict: the gate refuses. {' '.join(facts['refused'])}")
    return lines


def last_candidate(directory: Path) -> dict[str, Any] | None:
    """Return what the newest loop whose model was released wrote, with its `folder`; None where there is none."""
    return next((one for one in reversed(_loops(directory)) if one["release"] and Path(one["release"]).exists()), None)


def _loops(directory: Path) -> list[dict[str, Any]]:
    found = []
    for path in directory.glob(f"loops/*/{RESULT}"):
        if (path.parent / MANIFEST).exists():
            found.append({**json.loads(path.read_text(encoding="utf-8")), "folder": str(path.parent)})
    return sorted(found, key=lambda one: str(one["heard"]["until"]))


def _newest(runs: Path, kind: str) -> Path | None:
    found = [path.parent for path in runs.glob(f"*/{MANIFEST}") if read_manifest(path.parent)["kind"] == kind]
    return max(found, key=lambda folder: (folder / MANIFEST).stat().st_mtime, default=None)


def _unfinished(directory: Path, settings: Sequence[str], start: str) -> dict[str, Any] | None:
    path = directory / "loops" / UNFINISHED
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise PreftuneError(f"this file is broken ({error})", str(path), "Delete it; what was trained is found again.") from error
    return found if (found["settings"], found["start"]) == (list(settings), start) else None


def _begin(note: Path, plan: Plan) -> dict[str, Any]:
    note.parent.mkdir(parents=True, exist_ok=True)
    begun = {
        "settings": list(plan.settings),
        "start": str(plan.start),
        "since": plan.heard.since.isoformat(),
        "until": plan.heard.until.isoformat(),
    }
    write_json(note, begun)
    return begun


def _keep(out: Path, trained: Path, report: Path, facts: dict[str, Any]) -> Path:
    inputs = {"run": hash_folder(trained), "evaluation": hash_folder(report)}
    final, work = begin(out, "loop", inputs, {"until": facts["heard"]["until"].isoformat()})
    if work is None:
        return final
    heard = {key: value.isoformat() if isinstance(value, datetime) else value for key, value in facts["heard"].items()}
    facts["heard"] = heard
    write_json(work.path / RESULT, facts)
    return work.finish(final)
