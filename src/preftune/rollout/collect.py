"""Candidates for people to rank: k different answers to each prompt, from a local model or from models behind URLs.

    for each batch of prompts:
        each free place of a prompt asks its source (they take turns) at its temperature (a ladder), the greedy places first
        an empty answer, or one that is nearly alike another of its prompt, is asked for again, one rung higher, up to `tries` times
        what is new goes into the store, with the settings that made it

A place that is filled is never asked for again, so an interrupted run goes on where it was, the same settings twice add nothing, and a
higher k adds the difference. Nothing here loads torch unless a local model has to answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from preftune.data.formats import Row, detect, read
from preftune.data.remote import Endpoint, RemoteError, Reply
from preftune.data.similarity import same_answer
from preftune.data.store import Store
from preftune.errors import ConfigError, DataError
from preftune.progress import Progress, Silent, Task, counted
from preftune.records import Candidate, Prompt, content_id
from preftune.rollout.sources import LocalModel, Outcome, SampleSettings, ServedModel, Source, Wish

BATCH_PROMPTS = 16  # what a kill may lose, at most
FORMAT = "sample"  # how a finished run is noted among the imports
HOPELESS = frozenset({401, 403, 404})  # nothing that this endpoint is asked will be answered


@dataclass
class SampleReport:
    """What a run of `sample_candidates` did.

    prompts: looked at. complete: of these, had all their candidates already. new: candidates added. duplicates, empty: answers thrown away.
    places_left: places that stay free, since all tries were alike. cut: of the new ones, ended by the limit. failed: places whose source
    gave an error (they are asked for when the same is run again), and the last such error. too_long: prompts that fit no model.
    set_aside: rows of the prompts' file that could not be used.
    """

    prompts: int = 0
    complete: int = 0
    new: int = 0
    duplicates: int = 0
    empty: int = 0
    places_left: int = 0
    cut: int = 0
    failed: int = 0
    last_error: str = ""
    too_long: int = 0
    set_aside: int = 0
    sources: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def lines(self, max_new_tokens: int) -> list[str]:
        """Return the report as lines for a person."""
        from_each = ", ".join(f"{count:,} from {name}" for name, count in self.sources.items())
        lines = [f"{counted(self.prompts, 'prompts')}: {counted(self.new, 'new candidates')}{f' ({from_each})' if from_each else ''}"]
        told = {
            "prompts had all their candidates already": self.complete,
            "answers were nearly alike another one, and thrown away": self.duplicates,
            "answers were empty": self.empty,
            "places stay free, since every try was alike: raise --temperature or lower --candidates": self.places_left,
            f"answers were cut at {max_new_tokens:,} tokens: raise --max-new-tokens": self.cut,
            f"prompts leave no room for {max_new_tokens:,} tokens in what the model can read: lower --max-new-tokens": self.too_long,
            "rows of the file could not be used": self.set_aside,
            f"answers failed, the last one so: {self.last_error}": self.failed,
        }
        return lines + [f"  {counted(count, what)}" for what, count in told.items() if count]


@dataclass
class _Open:
    """A prompt under way: the texts that it has, the places that are free, and what was found for them."""

    prompt: Prompt
    texts: list[str]
    free: list[int]
    found: list[Candidate] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)


def sample_candidates(
    store: Store | Path | str,
    sources: Sequence[Path | Endpoint],
    settings: SampleSettings | None = None,
    *,
    prompts: Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> SampleReport:
    """Ask for candidates and add them to the store; return what happened.

    sources: folders or GGUF files of local models, and endpoints. prompts: a file of any known format whose prompts are added and asked;
    None = all of the store. limit: the first so many prompts alone.
    Raises ConfigError or ModelError where a source cannot be used, and RemoteError where an endpoint answers nothing any more; what was
    found until then is in the store.
    """
    settings = settings or SampleSettings()
    if not sources:
        raise ConfigError("there is no model to ask", "sample", "Give --model, or an --endpoint.")
    with ExitStack() as stack:
        opened = store if isinstance(store, Store) else stack.enter_context(Store.open(store))
        report = SampleReport()
        asked = _prompts(opened, prompts, limit, report)
        models = [LocalModel(s, settings) if isinstance(s, Path) else ServedModel(s, settings) for s in sources]
        made_by = _settings_id(models, settings)
        run = hashlib.sha256(json.dumps([made_by, settings.candidates, [p.id for p in asked]]).encode()).hexdigest()
        if any(row["sha256"] == run and row["format"] == FORMAT for row in opened.imports()):
            report.prompts = report.complete = len(asked)
            return report
        _run(opened, asked, models, settings, made_by, report, progress or Silent())
        if not report.failed:
            with opened.writer() as writer:
                name = ", ".join(model.name for model in models)
                aside = report.duplicates + report.empty
                writer.record_import(name, run, FORMAT, rows_read=report.new + aside, rows_new=report.new, rows_set_aside=aside)
    return report


def _prompts(store: Store, file: Path | None, limit: int | None, report: SampleReport) -> list[Prompt]:
    found: dict[str, Prompt] = {}
    if file is None:
        found = {prompt.id: prompt for prompt in store.prompts()}
    else:
        for row in read(file, detect(file)):
            if isinstance(row, Row):
                found.setdefault(row.prompt.id, row.prompt)
            else:
                report.set_aside += 1
        store.add(prompts=found.values())
    if not found:
        where = store.where if file is None else str(file)
        raise DataError("there is no prompt to answer", where, "Import some, or give a file with --prompts.")
    return list(found.values())[:limit]


def _settings_id(models: Sequence[Source], settings: SampleSettings) -> str:
    """Return what makes two runs the same: all but how many candidates, and how often a duplicate is asked for again."""
    made_by = settings.model_dump(exclude={"candidates", "tries"})
    return content_id("sample", [model.identity for model in models], made_by)


def _run(
    store: Store,
    prompts: list[Prompt],
    models: Sequence[Source],
    settings: SampleSettings,
    made_by: str,
    report: SampleReport,
    progress: Progress,
) -> None:
    report.prompts = len(prompts)
    total = len(prompts) * settings.candidates
    opened = [_look(store, prompt, settings.candidates, made_by) for prompt in prompts]
    todo = [one for one in opened if one.free]
    report.complete = len(opened) - len(todo)
    done = total - sum(len(one.free) for one in todo)
    with progress.stage("sampling", total=total, unit="answers", done=done) as task:
        for part in (todo[start : start + BATCH_PROMPTS] for start in range(0, len(todo), BATCH_PROMPTS)):
            try:
                _Batch(part, models, settings, made_by, report).fill(task)
            finally:  # Ctrl-C and a server that is gone lose nothing that was answered
                store.add(candidates=[candidate for one in part for candidate in _to_store(one)])


def _look(store: Store, prompt: Prompt, candidates: int, made_by: str) -> _Open:
    """Return a prompt with the places that these settings have not filled, or given up, before."""
    there = list(store.candidates(prompt.id))
    ours = [c.sampling for c in there if c.sampling.get("settings") == made_by]
    done = {place for sampling in ours for place in (sampling["place"], *sampling.get("given_up", ()))}
    return _Open(prompt, [c.text for c in there], [place for place in range(candidates) if place not in done])


def _to_store(one: _Open) -> list[Candidate]:
    if one.found and one.given_up:
        first = one.found[0]
        one.found[0] = first.model_copy(update={"sampling": {**first.sampling, "given_up": sorted(one.given_up)}})
    return one.found


class _Batch:
    """Some prompts whose free places are filled together."""

    def __init__(
        self, part: Sequence[_Open], models: Sequence[Source], settings: SampleSettings, made_by: str, report: SampleReport
    ) -> None:
        self.part, self.models, self.settings, self.made_by, self.report = part, models, settings, made_by, report
        self.failed = self.answered = 0
        self.again: list[Wish] = []

    def fill(self, task: Task) -> None:
        """Ask until every place is filled or given up. Raises RemoteError where nothing is answered any more."""
        wishes = [_wish(one.prompt, place, 0, self.models, self.settings) for one in self.part for place in one.free]
        while wishes:
            self.again = []
            self._ask(wishes, task)
            wishes = self.again
        if self.failed and not self.answered:
            raise RemoteError(f"{self.failed:,} answers in a row failed", "sample", f"The last one: {self.report.last_error}")

    def _ask(self, wishes: list[Wish], task: Task) -> None:
        # A prompt's answers are looked at together, in the order of their places, whichever came first.
        awaited = Counter(wish.prompt.id for wish in wishes)
        came: dict[str, list[tuple[Wish, Outcome]]] = {one.prompt.id: [] for one in self.part}
        try:
            for model in self.models:
                for wish, outcome in model.answer([w for w in wishes if w.source is model]):
                    came[wish.prompt.id].append((wish, outcome))
                    if len(came[wish.prompt.id]) == awaited[wish.prompt.id]:
                        self._settle(came.pop(wish.prompt.id), task)
                    if isinstance(outcome, RemoteError) and outcome.status in HOPELESS:
                        raise outcome
        finally:  # what came before something went wrong counts
            for outcomes in came.values():
                self._settle(outcomes, task)

    def _settle(self, outcomes: list[tuple[Wish, Outcome]], task: Task) -> None:
        report = self.report
        for wish, outcome in sorted(outcomes, key=lambda item: item[0].place):
            one = next(one for one in self.part if one.prompt.id == wish.prompt.id)
            if isinstance(outcome, RemoteError):
                self.failed += 1
                report.failed, report.last_error = report.failed + 1, str(outcome)
            elif outcome is None:
                report.too_long += wish.place == one.free[0]
                one.given_up.append(wish.place)
            elif _accept(one, wish, outcome, self.made_by, report):
                self.answered += 1
            elif wish.attempt + 1 < self.settings.tries and wish.temperature > 0:
                self.again.append(_wish(wish.prompt, wish.place, wish.attempt + 1, self.models, self.settings))
                continue
            else:
                self.answered += 1
                report.places_left += 1
                one.given_up.append(wish.place)
            task.advance(1, new=report.new, duplicates=report.duplicates)


def _wish(prompt: Prompt, place: int, attempt: int, models: Sequence[Source], settings: SampleSettings) -> Wish:
    """Return what is asked for a place: the sources take turns, and each climbs the ladder; a further attempt is a rung higher."""
    turn, number = divmod(place, len(models))
    if settings.greedy and turn == 0:
        temperature = 0.0
    else:
        rung = (turn - settings.greedy) % len(settings.temperatures)
        temperature = settings.temperatures[min(rung + attempt, len(settings.temperatures) - 1)]
    return Wish(prompt, models[number], place, attempt, temperature)


def _accept(one: _Open, wish: Wish, reply: Reply, made_by: str, report: SampleReport) -> bool:
    text = reply.text
    if not text.strip():
        report.empty += 1
        return False
    if any(same_answer(text, other) for other in one.texts):
        report.duplicates += 1
        return False
    sampling = {"settings": made_by, "place": wish.place, "try": wish.attempt, "temperature": wish.temperature, "finished": reply.finished}
    one.texts.append(text)
    one.found.append(Candidate(prompt_id=one.prompt.id, text=text, source=wish.source.name, sampling={**sampling, **wish.source.facts}))
    report.new += 1
    report.cut += not reply.finished
    report.sources[wish.source.name] = report.sources.get(wish.source.name, 0) + 1
    return True
