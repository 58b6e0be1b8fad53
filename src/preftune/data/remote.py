"""The one client for models behind an OpenAI-style URL (`POST …/chat/completions`): whole answers, or piece by piece.

What can go wrong over a network is met here: names that lead elsewhere (`addresses.py`), redirects (never followed), slow, broken and
endless answers (deadlines and a limit on size), busy servers (asked again after a pause), keys (read from the environment, sent over https
or to a private address only, shown in no error). Proxies of the environment are not used: the address that was looked at is the one asked.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from email.utils import parsedate_to_datetime
from functools import cache, partial
from importlib import metadata
from queue import SimpleQueue
from ssl import SSLContext
from typing import Any, TypeVar

import httpx2
import tenacity

from preftune.data.addresses import Address, Unresolved, addresses_of, is_private
from preftune.data.chat_format import Ask, RemoteError, Reply, payload_of, pieces_of, plain, replies_of, told
from preftune.data.endpoints import Endpoint, read_endpoints
from preftune.errors import ConfigError
from preftune.records import Message

__all__ = ["Ask", "Endpoint", "RemoteError", "Reply", "chat", "complete", "complete_all", "read_endpoints", "stream_chat"]

ATTEMPTS = 5
BACK_OFF_SECONDS = 1.0  # doubled at each further attempt, and shortened at random so that clients do not come back together
LONGEST_PAUSE_SECONDS = 120.0
CONNECT_SECONDS = 10.0
WHOLE_SECONDS = 900.0  # for one answer: a server that sends a byte now and then holds nobody for ever
MAX_BYTES = 8 * 2**20  # of one answer; 1,000 tokens are some 5 kB, as a stream some 300 kB
MAX_ERROR_BYTES = 64 * 2**10
ERROR_SECONDS = 10.0  # how long an error's text is waited for
BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
T = TypeVar("T")


def chat(
    endpoint: Endpoint, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int | None = None, n: int = 1
) -> list[str]:
    """Return n answers. temperature: 0 = the likeliest. max_tokens: the limit on one answer. seed: for servers that know one.

    Raises ConfigError where the endpoint may not be asked so, and RemoteError where the server does not answer after all attempts.
    """
    return [reply.text for reply in complete(endpoint, messages, temperature=temperature, max_tokens=max_tokens, seed=seed, n=n)]


def complete(
    endpoint: Endpoint, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int | None = None, n: int = 1
) -> list[Reply]:
    """Return n answers, each with whether it ended by itself; else as `chat`. A server that gives fewer is asked for the rest."""
    found: list[Reply] = []
    while len(found) < n:
        ask = Ask(messages, temperature, max_tokens, None if seed is None else seed + len(found))
        payload = payload_of(endpoint, ask) | ({"n": n - len(found)} if n - len(found) > 1 else {})
        found += _retrying(partial(_whole, endpoint, payload))
    return found[:n]


def stream_chat(
    endpoint: Endpoint, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int | None = None
) -> Iterator[str]:
    """Yield the pieces of one answer as they come; else as `chat`. Once the first piece is out nothing is asked again.

    Close the iterator to hang up. Raises RemoteError also where the stream breaks off before its end.
    """
    payload = payload_of(endpoint, Ask(messages, temperature, max_tokens, seed)) | {"stream": True}
    with ExitStack() as stack:
        response = _retrying(partial(_open, endpoint, payload, stack))
        body = _body(endpoint, response, MAX_BYTES)
        if "text/event-stream" in response.headers.get("content-type", ""):
            yield from pieces_of(endpoint, body)
        else:  # a server that does not stream
            yield from (reply.text for reply in replies_of(endpoint, b"".join(body)))


def complete_all(endpoint: Endpoint, asks: Iterable[Ask]) -> Generator[tuple[int, Reply | RemoteError], None, None]:
    """Yield (place, answer or why there is none) of each ask as it comes, `endpoint.concurrency` of them under way at once.

    Raises what is wrong with the endpoint itself. Close the iterator to stop; what is under way is dropped.
    """
    endpoint.key()
    waiting, lock, stopped = enumerate(asks), threading.Lock(), threading.Event()
    done: SimpleQueue[tuple[int, Reply | BaseException] | None] = SimpleQueue()

    def work() -> None:
        while not stopped.is_set():
            with lock:
                place, ask = next(waiting, (None, None))
            if place is None or ask is None:
                break
            try:
                reply = complete(endpoint, ask.messages, temperature=ask.temperature, max_tokens=ask.max_tokens, seed=ask.seed)[0]
                done.put((place, reply))
            except BaseException as error:  # handed to the caller's thread, which raises it
                done.put((place, error))
        done.put(None)

    # Daemons, so that Ctrl-C need not wait for a slow server.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(endpoint.concurrency)]
    for worker in workers:
        worker.start()
    running = len(workers)
    try:
        while running:
            item = done.get()
            if item is None:
                running -= 1
            elif isinstance(item[1], Reply | RemoteError):
                yield item[0], item[1]
            else:
                raise item[1]
    finally:
        stopped.set()


def _retrying(attempt: Callable[[], T]) -> T:
    retries = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        retry=tenacity.retry_if_exception(_worth_asking_again),
        wait=_pause,
        sleep=time.sleep,
        reraise=True,
    )
    return retries(attempt)


def _worth_asking_again(error: BaseException) -> bool:
    if not isinstance(error, RemoteError | Unresolved):
        return False
    return error.again and (getattr(error, "wait_seconds", None) or 0.0) <= LONGEST_PAUSE_SECONDS


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked: float | None = getattr(error, "wait_seconds", None)
    return BACK_OFF_SECONDS * 2 ** (state.attempt_number - 1) * random.uniform(0.5, 1.0) if asked is None else asked


def _whole(endpoint: Endpoint, payload: dict[str, Any]) -> list[Reply]:
    with ExitStack() as stack:
        response = _open(endpoint, payload, stack)
        return replies_of(endpoint, b"".join(_body(endpoint, response, MAX_BYTES)))


def _open(endpoint: Endpoint, payload: dict[str, Any], stack: ExitStack) -> httpx2.Response:
    """Return a good answer's head, its body still to be read; the stack closes it. Raises RemoteError for any other status."""
    url, key = httpx2.URL(endpoint.url), endpoint.key()
    port = url.port or (443 if url.scheme == "https" else 80)
    host = url.raw_host.decode("ascii")
    addresses = addresses_of(host, port, allow_private=endpoint.allow_private, where=endpoint.where)
    if key and url.scheme == "http" and not all(map(is_private, addresses)):
        raise ConfigError("the key would travel unencrypted", endpoint.where, "Write https:// in its URL.")
    for address in addresses[:-1]:
        try:
            return _send(endpoint, payload, stack, address, key)
        except RemoteError as error:
            if not isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise
    return _send(endpoint, payload, stack, addresses[-1], key)


@cache
def _tls() -> SSLContext:
    return httpx2.create_ssl_context()


@cache
def _agent() -> str:
    return f"preftune/{metadata.version('preftune')}"


def _send(endpoint: Endpoint, payload: dict[str, Any], outer: ExitStack, address: Address, key: str | None) -> httpx2.Response:
    url = httpx2.URL(endpoint.url)
    path = url.path.rstrip("/")
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    # The address that was looked at is what is asked; the name goes along in the Host header and for the certificate.
    pinned = url.copy_with(host=str(address), path=path)
    name = url.raw_host.decode("ascii")
    headers = {
        "Host": url.netloc.decode("ascii"),
        "Accept": "application/json, text/event-stream",
        "Accept-Encoding": "identity",  # so that few bytes cannot become many
        "User-Agent": _agent(),
        **({"Authorization": f"Bearer {key}"} if key else {}),
    }
    timeout = httpx2.Timeout(endpoint.timeout_seconds, connect=CONNECT_SECONDS)
    with ExitStack() as stack, _network_errors(endpoint):
        client = stack.enter_context(httpx2.Client(verify=_tls(), trust_env=False, follow_redirects=False, timeout=timeout))
        request = client.build_request("POST", pinned, headers=headers, json=payload, extensions={"sni_hostname": name})
        response = client.send(request, stream=True)
        stack.callback(response.close)
        if response.status_code != 200:
            raise _refused(endpoint, response)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise RemoteError("the server sends its answer compressed, unasked", endpoint.where, "Look at its settings.")
        outer.enter_context(stack.pop_all())
        return response


@contextmanager
def _network_errors(endpoint: Endpoint) -> Iterator[None]:
    """Turn what httpx2 raises into a sentence."""
    try:
        yield
    except httpx2.ConnectTimeout as error:
        said = f"no connection within {CONNECT_SECONDS:g} s"
        raise RemoteError(said, endpoint.where, "See that the server runs and can be reached.", again=True) from error
    except httpx2.TimeoutException as error:
        said = f"the server was silent for {endpoint.timeout_seconds:g} s"
        raise RemoteError(said, endpoint.where, "Raise timeout_seconds, or ask for fewer tokens.", again=True) from error
    except httpx2.HTTPError as error:
        said = plain(endpoint, str(error) or type(error).__name__)
        again = "certificate" not in said.lower()  # one that is wrong now is wrong in a second
        raise RemoteError(
            f"the connection failed ({said})", endpoint.where, "See that the server runs and its URL is right.", again=again
        ) from error


def _refused(endpoint: Endpoint, response: httpx2.Response) -> RemoteError:
    status, where = response.status_code, endpoint.where
    if 300 <= status < 400:
        target = plain(endpoint, response.headers.get("location", "nowhere"))
        return RemoteError(
            f"the server redirects (status {status}) to {target}", where, "Write the final URL: none is followed.", status=status
        )
    text = plain(endpoint, told(_start_of(response)))
    fix = {401: "Look at the key.", 403: "Look at the key and its rights.", 404: "Look at the URL and the model's name."}.get(status, "")
    wait = _retry_after(response.headers.get("retry-after"))
    if wait is not None and wait > LONGEST_PAUSE_SECONDS:
        fix = f"It asks to wait {wait:,.0f} s: come back then."
    said = f"the server answers {status}{f': {text}' if text else ''}"
    return RemoteError(said, where, fix, status=status, again=status in BUSY, wait_seconds=wait)


def _start_of(response: httpx2.Response) -> bytes:
    """Return what an error's body begins with: all of it, unless it is very long or slow."""
    said, started = b"", time.monotonic()
    for chunk in response.iter_raw():
        said += chunk
        if len(said) > MAX_ERROR_BYTES or time.monotonic() - started > ERROR_SECONDS:
            break
    return said[:MAX_ERROR_BYTES]


def _retry_after(value: str | None) -> float | None:
    """Return the seconds to wait that a Retry-After header names, as a number or as a date; None where it names none."""
    if not value:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d*)?", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _body(endpoint: Endpoint, response: httpx2.Response, limit: int) -> Iterator[bytes]:
    """Yield the body's bytes. Raises RemoteError where it is longer than the limit, or takes too long."""
    size, started = 0, time.monotonic()
    with _network_errors(endpoint):
        for chunk in response.iter_raw():
            size += len(chunk)
            if size > limit:
                raise RemoteError(f"the answer is longer than {limit // 2**20} MiB", endpoint.where, "Ask for fewer tokens.")
            if time.monotonic() - started > WHOLE_SECONDS:
                raise RemoteError(f"the answer took over {WHOLE_SECONDS:g} s", endpoint.where, "Ask for fewer tokens.", again=True)
            yield chunk
