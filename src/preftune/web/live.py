"""Live comparison: two models answer side by side while one watches; names are shown after the vote.

A run lives in this process until it is voted on (an hour at most): before the vote nothing of it belongs to the data. The vote writes
the prompt, both answers with their source, and the judgement, in one transaction. Neither speed nor length of waiting tells
which model is which: both answers grow by the same number of characters, at the pace of the slower one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from preftune.data.remote import Endpoint, stream_chat
from preftune.errors import PreftuneError
from preftune.records import Candidate, Judgement, Message, Prompt
from preftune.web import forms, render
from preftune.web.answers import Answer
from preftune.web.site import Form, PageError, SignedIn, go, page, settings_of, store_of

router = APIRouter()
TEMPERATURE, MAX_TOKENS = 0.7, 1024
MAX_RUNS = 20  # kept at once, over all people
LIFE_SECONDS = 3600.0
TICK_SECONDS = 0.06
SLOWEST = 60.0  # characters a second that are shown at least, where they are there
CATCH_UP_SECONDS = 8.0  # in which what is left of the faster answer appears when the slower one has ended
NO_ANSWER = "No answer came from this model. Whoever runs this server finds the reason in its log."


@dataclass
class Run:
    """One question and the two answers as they come. Everything below `lock` is changed under it."""

    id: str
    person_id: str
    prompt: Prompt
    endpoints: tuple[Endpoint, Endpoint]
    seeds: tuple[int, int]
    begun: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    texts: list[str] = field(default_factory=lambda: ["", ""])
    done: list[bool] = field(default_factory=lambda: [False, False])
    problems: list[str] = field(default_factory=lambda: ["", ""])
    seen: int = 0  # characters of each answer that may be seen
    seen_at: float = 0.0
    stopped: bool = False
    answer: Answer | None = None
    judgement: Judgement | None = None

    @property
    def finished(self) -> bool:
        """Whether both answers are whole and all of them may be seen."""
        return all(self.done) and self.seen >= max(map(len, self.texts))

    @property
    def shown(self) -> list[str]:
        """What may be seen of both answers."""
        return [text[: self.seen] for text in self.texts]

    def listen(self, side: int) -> None:
        """Take in one model's answer until it ends or is stopped; the body of a thread."""
        pieces = stream_chat(
            self.endpoints[side], self.prompt.messages, temperature=TEMPERATURE, max_tokens=MAX_TOKENS, seed=self.seeds[side]
        )
        try:
            with closing(cast(Generator[str, None, None], pieces)):  # to hang up where it is stopped
                for piece in pieces:
                    with self.lock:
                        if self.stopped:
                            return
                        self.texts[side] += piece
        except PreftuneError as error:
            # The sentence names the endpoint, which the rater must not learn.
            logging.getLogger("preftune.web").warning("a live comparison: %s", error)
            with self.lock:
                self.problems[side] = NO_ANSWER
        finally:
            with self.lock:
                self.done[side] = True

    def advance(self, now: float) -> list[str]:
        """Let as much of both answers be seen as is due by now, and return it."""
        with self.lock:
            lengths = (len(self.texts[0]), len(self.texts[1]))
            elapsed = min(1.0, now - self.seen_at) if self.seen_at else TICK_SECONDS
            speed = min(lengths) / max(now - self.begun, 0.1)
            self.seen = paced(self.seen, lengths, (self.done[0], self.done[1]), speed, elapsed)
            self.seen_at = now
            return self.shown

    def stop(self) -> None:
        """End both answers where they are seen to be; what was not seen is not judged."""
        with self.lock:
            if not self.finished:
                self.stopped = True
                self.texts = self.shown
                self.done = [True, True]


def paced(seen: int, received: tuple[int, int], done: tuple[bool, bool], speed: float, elapsed: float) -> int:
    """Return how many characters of each of two answers may be seen.

    seen: how many were. received: how many are there. done: whether an answer has ended. speed: of the slower one, in characters a
    second. elapsed: seconds since. An answer that goes on holds the other back; after its end the other's rest follows at its speed.
    """
    bound = min((count for count, ended in zip(received, done, strict=True) if not ended), default=max(received))
    speed = max(speed, SLOWEST, (bound - seen) / CATCH_UP_SECONDS)
    return max(seen, min(bound, seen + max(1, round(speed * elapsed))))


class Runs:
    """The runs of this process, each known to its person alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}

    def start(self, person_id: str, prompt: Prompt, endpoints: tuple[Endpoint, ...]) -> Run:
        """Ask two of the endpoints (or one twice), in random order. A person's run before is given up."""
        chance = secrets.SystemRandom()
        two = chance.sample(endpoints, 2) if len(endpoints) > 1 else [endpoints[0]] * 2
        seeds = (chance.randrange(2**31), chance.randrange(2**31))
        run = Run(secrets.token_hex(16), person_id, prompt, (two[0], two[1]), seeds)
        with self._lock:
            now = time.monotonic()
            for other in list(self._runs.values()):
                if other.person_id == person_id or now - other.begun > LIFE_SECONDS:
                    other.stop()
                    del self._runs[other.id]
            if len(self._runs) >= MAX_RUNS:
                raise PageError(503, f"{MAX_RUNS} others are comparing models right now", "Try again in some minutes.")
            self._runs[run.id] = run
        for side in (0, 1):
            threading.Thread(target=run.listen, args=(side,), daemon=True).start()
        return run

    def of(self, person_id: str, run_id: str) -> Run:
        """Return a person's run. Raises PageError where it is another's, was given up, or is from before a restart."""
        run = self._runs.get(run_id)
        if run is None or run.person_id != person_id:
            raise PageError(404, "This comparison is no longer here", "Ask again.")
        return run


@router.get("/live")
def show(request: Request, session: SignedIn, run: str = "", wait: str = "") -> Response:
    """Show the form for a question, or a run. wait: answer only when both models are done (for browsers without script)."""
    if not settings_of(request).endpoints:
        raise PageError(404, "No models are set up for live comparison", "An owner names them under label.endpoints in preftune.yaml.")
    if not run:
        return _page(request, None)
    found = _runs(request).of(session.person.id, run)
    while wait and not found.finished:
        found.advance(time.monotonic())
        time.sleep(TICK_SECONDS)
    return _page(request, found)


def _page(request: Request, run: Run | None, *, status: int = 200, prompt: str = "", error: str = "") -> Response:
    voted = run is not None and run.judgement is not None
    context: dict[str, Any] = {
        "run": run,
        "asked": render.markdown(run.prompt.text) if run else "",
        "formatted": [render.answer(text) for text in run.shown] if run else [],
        "names": [endpoint.name for endpoint in run.endpoints] if run and voted else None,
        "said": forms.read_back("pair", 2, run.answer) if run and run.answer else "",
        "choices": forms.CHOICES,
    }
    return page(request, "live.html", status, prompt=prompt, error=error, **context)


@router.post("/live")
def ask(request: Request, session: SignedIn, form: Form) -> Response:
    """Ask two models a question."""
    question = form.get("prompt", "").strip()
    endpoints = settings_of(request).endpoints
    if not question or not endpoints:
        return _page(request, None, status=422, error="Write a question first.")
    run = _runs(request).start(session.person.id, Prompt(messages=(Message(role="user", content=question),)), endpoints)
    return go(f"/live?run={run.id}")


@router.get("/live/stream")
def stream(request: Request, session: SignedIn, run: str) -> Response:
    """Stream both answers as server-sent events, from the beginning whenever it is asked for."""
    found = _runs(request).of(session.person.id, run)
    return StreamingResponse(events(found), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def events(run: Run) -> AsyncIterator[str]:
    """Yield the events: `{"side": 0 or 1, "text": …}` for each piece, and at last one of the kind "done".

    The text travels as JSON in ASCII, so no line break of a model's can end an event or begin another.
    """
    sent, quiet = [0, 0], 0.0
    while True:
        shown = run.advance(time.monotonic())
        for side, text in enumerate(shown):
            if len(text) > sent[side]:
                yield f"data: {json.dumps({'side': side, 'text': text[sent[side] :]})}\n\n"
                sent[side], quiet = len(text), 0.0
        if run.finished:
            yield "event: done\ndata: {}\n\n"
            return
        quiet += TICK_SECONDS
        if quiet > 15:
            yield ": still waiting\n\n"  # keeps what lies between from closing the connection
            quiet = 0.0
        await asyncio.sleep(TICK_SECONDS)


@router.post("/live/stop")
def stop(request: Request, session: SignedIn, form: Form) -> Response:
    """End both answers where they are."""
    run = _runs(request).of(session.person.id, form.get("run", ""))
    run.stop()
    return go(f"/live?run={run.id}")


@router.post("/live/vote")
def vote(request: Request, session: SignedIn, form: Form) -> Response:
    """Store the question, both answers and what was said of them; a vote before the end stops the answers."""
    run = _runs(request).of(session.person.id, form.get("run", ""))
    if run.judgement is not None:
        return go(f"/live?run={run.id}")
    try:
        answer = forms.read_form("pair", 2, [], form)
        run.stop()
        with run.lock:
            prompt, candidates = run.prompt, _candidates(run)
            judgement = _judgement(prompt, candidates, answer, session.person.pseudonym)
            store_of(request).add([prompt], candidates, [judgement])
            run.answer, run.judgement = answer, judgement
    except forms.FormError as error:
        return _page(request, run, status=422, error=str(error))
    return go(f"/live?run={run.id}")


@router.post("/live/undo")
def take_back(request: Request, session: SignedIn, form: Form) -> Response:
    """Take a vote back; the question and the answers stay in the store, unjudged."""
    run = _runs(request).of(session.person.id, form.get("run", ""))
    with run.lock:
        if run.judgement is not None:
            row = Judgement(prompt_id=run.prompt.id, rater=session.person.pseudonym, picked_by="live", supersedes=run.judgement.id)
            store_of(request).add(judgements=[row])
            run.answer = run.judgement = None
    return go("/live")


def _candidates(run: Run) -> list[Candidate]:
    if any(run.problems) or not all(text.strip() for text in run.texts):
        raise forms.FormError("One of the two answers is missing, so there is nothing to compare", fix="Ask again.")
    if run.texts[0] == run.texts[1]:
        raise forms.FormError("Both answers are the same, so there is nothing to compare", fix="Ask something else.")
    settings = {"temperature": TEMPERATURE, "max_tokens": MAX_TOKENS, "live": True, "stopped": run.stopped}
    return [
        Candidate(prompt_id=run.prompt.id, text=text, source=endpoint.name, sampling={**settings, "model": endpoint.model, "seed": seed})
        for text, endpoint, seed in zip(run.texts, run.endpoints, run.seeds, strict=True)
    ]


def _judgement(prompt: Prompt, candidates: list[Candidate], answer: Answer, rater: str) -> Judgement:
    ids = [candidate.id for candidate in candidates]
    return Judgement(
        prompt_id=prompt.id,
        ranking=tuple(tuple(ids[i] for i in tier) for tier in answer.ranking),
        strength=answer.strength,
        acceptable=None if answer.acceptable is None else tuple(ids[i] for i in answer.acceptable),
        rater=rater,
        active_seconds=answer.active_seconds,
        presentation=tuple(ids),
        picked_by="live",
    )


def _runs(request: Request) -> Runs:
    runs: Runs = request.app.state.live
    return runs
