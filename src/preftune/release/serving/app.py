"""The routes: OpenAI's chat and text completions, models and health; feedback and its results; the chat page.

A request becomes n tickets of a model's worker; their tokens become text, held back where it might be the beginning of a stop text
or of a letter of several tokens. A client that leaves gives its tickets up.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from preftune.data.feedback import Answer
from preftune.errors import PreftuneError
from preftune.manifest import content_seed
from preftune.release.serving import page
from preftune.release.serving.arms import Arm, Split
from preftune.release.serving.asked import Asked, AskedChat, AskedFeedback, AskedText
from preftune.release.serving.desk import Desk, results
from preftune.release.serving.form import Form, Piece, TokenLogprob
from preftune.release.serving.problems import Problem, read, refuse
from preftune.release.serving.text import UNREADABLE, Decode, Reader
from preftune.release.serving.worker import Ticket

AUTO = "auto"  # the model's name that leaves it to the server


class Service:
    """Models behind the routes.

    arms: the release first. split: between which two of them users are divided who name none; None: all get the release.
    desk: takes feedback; None: there is no feedback. base: the name of the model that the chat page shows beside the release.
    keys: bearer keys that are let in; none = everyone is.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        *,
        keys: Sequence[str] = (),
        split: Split | None = None,
        desk: Desk | None = None,
        base: str | None = None,
    ) -> None:
        self.arms = {arm.name: arm for arm in arms}
        self.release, self.keys, self.split, self.desk, self.base = arms[0].name, tuple(keys), split, desk, base
        self.started = int(time.time())
        self._secret = desk.secret if desk else secrets.token_hex(16)

    def check_key(self, request: Request) -> None:
        """Raise Problem 401 unless the request bears one of the keys, 403 where another site's page has made it."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.keys and not any([hmac.compare_digest(given, key.encode()) for key in self.keys]):
            raise Problem(401, "The key is wrong or missing. Send it as Authorization: Bearer KEY.", "invalid_api_key")
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Problem(403, "A page of another site has sent this request. Use the chat page of this server.", "other_site")

    def user_of(self, request: Request, named: str | None) -> str | None:
        """Return who asks: as the caller names them, else the visitor of the chat page, else whose key it is; None: nobody knows."""
        key = request.headers.get("authorization", "")
        if named is not None:
            return f"{key} {named}"
        if (visitor := request.cookies.get(page.COOKIE)) is not None:
            return f"visitor {visitor}"
        return key if len(self.keys) > 1 else None

    def arm_for(self, asked: Asked, user: str | None) -> tuple[Arm, bool]:
        """Return who answers, and whether that was drawn by the split. A name that is none of ours counts as none."""
        if asked.model in self.arms:
            return self.arms[asked.model], False
        if self.split is None:
            return self.arms[self.release], False
        return self.arms[self.split.name_for(user if user is not None else secrets.token_hex(8), self._secret)], True

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self.check_key(request)
        about = {"object": "model", "created": self.started, "owned_by": "preftune"}
        return JSONResponse({"object": "list", "data": [{"id": name, **about} for name in self.arms]})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        self.check_key(request)
        asked = await read(request, AskedChat)
        arm, drawn = self.arm_for(asked, self.user_of(request, asked.user))
        prompt = arm.chat_prompt(asked.messages)
        form = Form(arm.name, chat=True, logprobs=asked.logprobs, prompt_tokens=len(prompt), on_whole=self._keeper(asked, arm, drawn))
        pieces = self._pieces(arm, asked, prompt, arm.renderer.decode, arm.spoken, asked.top_logprobs or 0)
        return await self._answer(request, asked, form, pieces)

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        self.check_key(request)
        asked = await read(request, AskedText)
        arm, _ = self.arm_for(asked, self.user_of(request, asked.user))
        prompt = arm.text_prompt(asked.prompt)
        form = Form(arm.name, chat=False, logprobs=asked.logprobs is not None, prompt_tokens=len(prompt))
        pieces = self._pieces(arm, asked, prompt, arm.continues(prompt), arm.plain, asked.logprobs or 0)
        return await self._answer(request, asked, form, pieces)

    async def terms(self, request: Request) -> Response:
        """GET /v1/feedback: what users are to be told."""
        self.check_key(request)
        return JSONResponse(self._desk().terms)

    async def feedback(self, request: Request) -> Response:
        """POST /v1/feedback."""
        self.check_key(request)
        desk, asked = self._desk(), await read(request, AskedFeedback)
        return JSONResponse(await run_in_threadpool(desk.take, asked, self.user_of(request, asked.user)))

    async def ab(self, request: Request) -> Response:
        """GET /v1/ab: what was said so far of the split, and of the release beside the base."""
        self.check_key(request)
        side = (self.release, self.base) if self.base else None
        found = await run_in_threadpool(results, self._desk().store, self.split.names if self.split else None, side)
        return JSONResponse({**found.as_dict(), "share": self.split.share if self.split else None})

    def _desk(self) -> Desk:
        if self.desk is None:
            raise Problem(404, "This server takes no feedback. Start it in a project's folder, or with --store.", "no_feedback")
        return self.desk

    def _keeper(self, asked: AskedChat, arm: Arm, drawn: bool) -> Keeper | None:
        return Keeper(self.desk, asked, arm.name, self.split.names if self.split and drawn else None) if self.desk else None

    async def _answer(self, request: Request, asked: Asked, form: Form, pieces: AsyncGenerator[Piece, None]) -> Response:
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return StreamingResponse(form.events(pieces, usage=usage), media_type="text/event-stream")
        work = asyncio.ensure_future(form.whole(pieces, asked.n))
        gone = asyncio.ensure_future(request.receive())  # the body is read, so what comes next is that the client leaves
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(await work) if work.done() else Response(status_code=499)
        finally:
            work.cancel()
            gone.cancel()

    async def _pieces(
        self, arm: Arm, asked: Asked, prompt: list[int], whole: Decode, later: Decode, top: int
    ) -> AsyncGenerator[Piece, None]:
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        tickets = [
            arm.worker.ask(
                prompt,
                seed=content_seed(seed, "", k),
                temperature=asked.temperature,
                top_p=asked.top_p,
                max_new_tokens=asked.limit,
                stop_ids=arm.renderer.stop_ids,
                top_logprobs=top,
            )
            for k in range(asked.n)
        ]
        joined: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        readers = [
            asyncio.ensure_future(_read(arm, k, ticket, Reader(whole, later, asked.stops), joined)) for k, ticket in enumerate(tickets)
        ]
        left = asked.n
        try:
            while left:
                piece = await joined.get()
                if isinstance(piece, Exception):
                    raise piece
                left -= piece.why is not None
                yield piece
        finally:
            for reader, ticket in zip(readers, tickets, strict=True):
                reader.cancel()
                arm.worker.cancel(ticket)


class Keeper:
    """Hands the answers to one request on to the desk, as they end."""

    def __init__(self, desk: Desk, asked: AskedChat, model: str, split: tuple[str, str] | None) -> None:
        self._desk, self._asked, self._model, self._split = desk, asked, model, split

    def __call__(self, name: str, index: int, text: str) -> None:
        """Keep an answer, unless it holds nothing, or the conversation does not end with the user."""
        # No database keeps a NUL, which an untaught model may well write.
        messages = tuple(m.model_copy(update={"content": m.content.replace("\0", UNREADABLE)}) for m in self._asked.messages)
        text = text.replace("\0", UNREADABLE)
        if text.strip() and messages[-1].role == "user":
            sampling = {"temperature": self._asked.temperature, "top_p": self._asked.top_p}
            self._desk.given.add(Answer(name, index, messages, text, self._model, self._split, sampling))


async def _read(arm: Arm, index: int, ticket: Ticket, reader: Reader, into: asyncio.Queue[Piece | Exception]) -> None:
    try:
        await _follow(arm, index, ticket, reader, into)
    except Exception as error:  # whoever waits for the pieces is told, and raises it
        into.put_nowait(error)


async def _follow(arm: Arm, index: int, ticket: Ticket, reader: Reader, into: asyncio.Queue[Piece | Exception]) -> None:
    word = arm.renderer.tokenizer.decode
    since: list[TokenLogprob] = []
    while True:
        drawn = await ticket.queue.get()
        if isinstance(drawn, Exception):
            raise drawn
        since.append(TokenLogprob(str(word([drawn.token])), drawn.logprob, tuple((str(word([t])), p) for t, p in drawn.top)))
        text, met = reader.add(drawn.token, last=drawn.last)
        if met or drawn.last or text:
            why = "stop" if met or drawn.finished else "length" if drawn.last else None
            into.put_nowait(Piece(index, text, why, tuple(since), reader.tokens))
            since = []
        if met or drawn.last:
            if met:
                arm.worker.cancel(ticket)
            return


def make_app(service: Service) -> Starlette:
    """Return the ASGI app; the workers end with it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        for arm in service.arms.values():
            arm.worker.close()

    return Starlette(
        routes=[
            Route("/health", lambda request: JSONResponse({"status": "ok"})),
            Route("/v1/models", service.models),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/completions", service.complete, methods=["POST"]),
            Route("/v1/feedback", service.terms, methods=["GET"]),
            Route("/v1/feedback", service.feedback, methods=["POST"]),
            Route("/v1/ab", service.ab),
            *page.routes(service.release, base=service.base, with_keys=bool(service.keys), desk=service.desk),
        ],
        exception_handlers={Problem: refuse, PreftuneError: refuse, HTTPException: refuse, Exception: refuse},
        lifespan=lifespan,
    )
