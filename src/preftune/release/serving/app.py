"""The routes: /v1/chat/completions, /v1/completions, /v1/models, /health.

A request becomes n tickets of the worker; their tokens become text, held back where it might be the beginning of a stop text
or of a letter of several tokens. A client that leaves gives its tickets up.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from torch import nn

from preftune.data.template import Renderer
from preftune.errors import PreftuneError
from preftune.manifest import content_seed
from preftune.models.load import max_context
from preftune.release.serving.asked import Asked, AskedChat, AskedText
from preftune.release.serving.worker import Ticket, Worker

Kind = TypeVar("Kind", bound=Asked)
Decode = Callable[[Sequence[int]], str]
MOST_BYTES = 10_000_000  # of a request's body
CONTEXT_BEFORE = 8  # tokens of a plain prompt that its continuation is decoded after


class Problem(Exception):
    """An answer that is an error, in OpenAI's form."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """Return the error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Piece:
    """New text of an answer. why: "stop" or "length" with the last piece. logprobs: (text, nats) of each token since the last piece."""

    index: int
    text: str
    why: str | None
    logprobs: tuple[tuple[str, float], ...]
    tokens: int


def settled(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return (what of the text can be sent, whether a stop text was met). Held back: a beginning of a stop text, half a letter."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    if places:
        return text[: min(places)], True
    text = text.rstrip("\ufffd")
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held], False


class Service:
    """One model behind the routes. keys: bearer keys that are let in; none = everyone is."""

    def __init__(self, model: nn.Module, renderer: Renderer, *, name: str, keys: Sequence[str] = ()) -> None:
        self.renderer, self.name, self.keys = renderer, name, tuple(keys)
        self.context = max_context(model)
        self.worker = Worker(model, renderer.pad_id)
        self.started = int(time.time())

    def check_key(self, request: Request) -> None:
        """Raise Problem 401 unless the request bears one of the keys."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.keys and not any([hmac.compare_digest(given, key.encode()) for key in self.keys]):
            raise Problem(401, "The key is wrong or missing. Send it as Authorization: Bearer KEY.", "invalid_api_key")

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self.check_key(request)
        own = {"id": self.name, "object": "model", "created": self.started, "owned_by": "preftune"}
        return JSONResponse({"object": "list", "data": [own]})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        self.check_key(request)
        asked = await read(request, AskedChat)
        prompt = self.renderer.prompt_ids(asked.messages)
        return await self._answer(request, asked, prompt, self.renderer.decode, chat=True, logprobs=asked.logprobs)

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        self.check_key(request)
        asked = await read(request, AskedText)
        prompt = self.renderer.raw_ids(asked.prompt)
        before = prompt[-CONTEXT_BEFORE:]

        def decode(ids: Sequence[int]) -> str:
            shown = [token for token in ids if token not in self.renderer.stop_ids]
            texts = [str(self.renderer.tokenizer.decode(part, clean_up_tokenization_spaces=False)) for part in (before, [*before, *shown])]
            return texts[1].removeprefix(texts[0])

        return await self._answer(request, asked, prompt, decode, chat=False, logprobs=asked.logprobs is not None)

    async def _answer(self, request: Request, asked: Asked, prompt: list[int], decode: Decode, *, chat: bool, logprobs: bool) -> Response:
        if len(prompt) >= self.context:
            said = f"The prompt has {len(prompt):,} tokens, and the model's context ends at {self.context:,}. Shorten it."
            raise Problem(400, said, "context_length_exceeded", "messages" if chat else "prompt")
        pieces = self._pieces(asked, prompt, decode)
        form = Form(self.name, chat, logprobs, len(prompt))
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

    async def _pieces(self, asked: Asked, prompt: list[int], decode: Decode) -> AsyncIterator[Piece]:
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        tickets = [
            self.worker.ask(
                prompt,
                seed=content_seed(seed, "", k),
                temperature=asked.temperature,
                top_p=asked.top_p,
                max_new_tokens=asked.limit,
                stop_ids=self.renderer.stop_ids,
            )
            for k in range(asked.n)
        ]
        joined: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        readers = [asyncio.ensure_future(self._read(k, ticket, asked.stops, decode, joined)) for k, ticket in enumerate(tickets)]
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
                self.worker.cancel(ticket)

    async def _read(
        self,
        index: int,
        ticket: Ticket,
        stops: Sequence[str],
        decode: Decode,
        into: asyncio.Queue[Piece | Exception],
    ) -> None:
        try:
            await self._follow(index, ticket, stops, decode, into)
        except Exception as error:  # whoever waits for the pieces is told, and raises it
            into.put_nowait(error)

    async def _follow(
        self, index: int, ticket: Ticket, stops: Sequence[str], decode: Decode, into: asyncio.Queue[Piece | Exception]
    ) -> None:
        ids: list[int] = []
        sent = ""
        since: list[tuple[str, float]] = []
        while True:
            drawn = await ticket.queue.get()
            if isinstance(drawn, Exception):
                raise drawn
            ids.append(drawn.token)
            since.append((str(self.renderer.tokenizer.decode([drawn.token])), drawn.logprob))
            whole = decode(ids)
            text, met = settled(whole, stops)
            if drawn.last and not met:
                text = whole
            if met or drawn.last or len(text) > len(sent):
                why = "stop" if met or drawn.finished else "length" if drawn.last else None
                into.put_nowait(Piece(index, text[len(sent) :], why, tuple(since), len(ids)))
                sent, since = max(sent, text, key=len), []
            if met or drawn.last:
                if met:
                    self.worker.cancel(ticket)
                return


class Form:
    """Pieces as the objects that OpenAI's clients read."""

    def __init__(self, model: str, chat: bool, logprobs: bool, prompt_tokens: int) -> None:
        self.chat, self.logprobs, self.prompt_tokens = chat, logprobs, prompt_tokens
        self.head = {"id": ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12), "created": int(time.time()), "model": model}

    async def whole(self, pieces: AsyncIterator[Piece], n: int) -> dict[str, Any]:
        """Return the answer in one object."""
        own: list[list[Piece]] = [[] for _ in range(n)]
        async for piece in pieces:
            own[piece.index].append(piece)
        choices = []
        for index, parts in enumerate(own):
            text = "".join(part.text for part in parts)
            said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            pairs = [pair for part in parts for pair in part.logprobs]
            choices.append({"index": index, **said, "finish_reason": parts[-1].why, "logprobs": self._logprobs(pairs)})
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": choices, "usage": self._usage(sum(parts[-1].tokens for parts in own))}

    async def events(self, pieces: AsyncIterator[Piece], *, usage: bool) -> AsyncIterator[str]:
        """Yield server-sent events, the last of them `[DONE]`."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        tokens: dict[int, int] = {}
        try:
            async for piece in pieces:
                first = {} if piece.index in tokens else {"role": "assistant"}
                tokens[piece.index] = piece.tokens
                said = {"delta": {**first, "content": piece.text}} if self.chat else {"text": piece.text}
                choice = {"index": piece.index, **said, "finish_reason": piece.why, "logprobs": self._logprobs(piece.logprobs)}
                yield _event({**self.head, "object": kind, "choices": [choice]})
        except PreftuneError as error:  # the status is sent, so the error comes as an event
            yield _event(Problem(500, str(error), "generation_failed").body())
            return
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]  # an async generator: gives the tickets up when the client leaves
        if usage:
            yield _event({**self.head, "object": kind, "choices": [], "usage": self._usage(sum(tokens.values()))})
        yield "data: [DONE]\n\n"

    def _usage(self, completion: int) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": completion, "total_tokens": self.prompt_tokens + completion}

    def _logprobs(self, pairs: Sequence[tuple[str, float]]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.chat:
            return {"content": [{"token": t, "logprob": p, "bytes": list(t.encode()), "top_logprobs": []} for t, p in pairs]}
        return {"tokens": [t for t, _ in pairs], "token_logprobs": [p for _, p in pairs], "top_logprobs": None, "text_offset": []}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


async def read(request: Request, kind: type[Kind]) -> Kind:
    """Return the request's body. Raises Problem 413 where it is too long, 400 where it is not what the route takes."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise Problem(413, f"The request has more than {MOST_BYTES:,} bytes. Send less.", "request_too_large")
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Problem(400, f"{place}: {first['msg']}." if place else f"{first['msg']}.", "invalid_request", place or None) from error


def make_app(service: Service) -> Starlette:
    """Return the ASGI app; the worker ends with it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.worker.close()

    def refuse(request: Request, error: Exception) -> Response:
        problem = error if isinstance(error, Problem) else Problem(400, str(error), "invalid_request")
        return JSONResponse(problem.body(), problem.status)

    return Starlette(
        routes=[
            Route("/health", lambda request: JSONResponse({"status": "ok"})),
            Route("/v1/models", service.models),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/completions", service.complete, methods=["POST"]),
        ],
        exception_handlers={Problem: refuse, PreftuneError: refuse},
        lifespan=lifespan,
    )
