"""Requests that cannot be answered, in the form in which OpenAI's clients read errors, and the reading of request bodies."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from preftune.errors import PreftuneError

Body = TypeVar("Body", bound=BaseModel)
MOST_BYTES = 10_000_000  # of a request's body
HINTS = {
    "consent": "Get the text from GET /v1/feedback, show it, and send its consent.id.",
    "answers": 'Name one answer, or two for "better", by the id of the reply: [{"id": "chatcmpl-…"}].',
}
FAULT = "Something went wrong in the server; its log says what. The next request is served as usual."


class Problem(Exception):
    """An answer that is an error, in OpenAI's form."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """Return the error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def problem_of(error: Exception, *, status: int = 400) -> Problem:
    """Return an error as a Problem: our own with their sentence and this status, others as a fault that the log explains."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, PreftuneError):
        return Problem(status, str(error), "invalid_request" if status < 500 else "generation_failed")
    if isinstance(error, HTTPException):
        return Problem(error.status_code, f"{error.detail}.", "not_found" if error.status_code == 404 else "invalid_request")
    logging.getLogger("preftune.serve").error("a request failed", exc_info=error)
    return Problem(500, FAULT, "internal_error")


def refuse(request: Request, error: Exception) -> Response:
    """Answer a request with the error that it ended in."""
    problem = problem_of(error)
    # After a fault the server closes the connection. A client that is not told so sends its next request on it, and loses that.
    headers = {"Connection": "close"} if problem.status == 500 else {}
    return JSONResponse(problem.body(), problem.status, headers)


async def read(request: Request, kind: type[Body]) -> Body:
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
        raise Problem(400, _sentence(kind, place, first), "invalid_request", place or None) from error


def _sentence(kind: type[BaseModel], place: str, found: Any) -> str:
    """Say what is wrong with a body, where, and what to do, from pydantic's first error."""
    said = found["msg"].removeprefix("Value error, ")
    if not place:
        return f"{said}."
    if found["type"] == "missing":
        told = f"{place}: it is needed and missing."
    elif found["type"] == "extra_forbidden":
        known = f" Known are {', '.join(kind.model_fields)}." if "." not in place else ""
        told = f"{place}: this server knows no such setting, and ignoring it would give another answer than you asked for.{known}"
    else:
        told = f"{place}: {said}."
    return f"{told} {HINTS[place]}" if place in HINTS else told
