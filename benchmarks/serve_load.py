"""The server under load: many streams at once against one by one, and clients that misbehave; the last line is one JSON object.

    python benchmarks/serve_load.py [--streams 32] [--tokens 64] [--model FOLDER] [--quick] [--json]

The work: `preftune serve` with SmolLM2-135M-Instruct in a process of its own, on this machine's loopback. Each request asks something else
and streams up to 64 tokens; every other one is greedy, the rest draw at temperature 1 with a seed of their own. First all go one after
the other, then all at once, then again while other clients misbehave: they leave in the middle of an answer, send 100,000 tokens, half a
JSON object, ten megabytes, a wrong key.
ratio: tokens a second together over one by one. same_text: how many of the streams said what they say alone, to the letter; others part
after `parted_after` characters, where the last bits of the arithmetic tipped a draw. mixed_up: those that begin more like another's
answer than like their own. failed: streams without an end. first_token_p95: seconds, of the streams that began at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

KEY = "load"
TOPICS = (
    "a lighthouse, bread, snow, an old clock, trains, bees, chess, a violin, the sea, maps, glass, a market, rivers, salt, kites, boats, "
    "mirrors, a garden, copper, rain, bicycles, letters, an island, wool, thunder, a bridge, olives, ink, a desert, candles, moss, chalk"
).split(", ")


@dataclass(frozen=True)
class Stream:
    """What one client got. first, whole: seconds from its request on."""

    text: str
    tokens: int
    first: float
    whole: float
    why: str | None


def body(place: int, tokens: int) -> dict[str, Any]:
    """Return the request of one client."""
    draws = {"temperature": 0} if place % 2 == 0 else {"temperature": 1.0, "seed": place}
    asked = f"Write a long story about {TOPICS[place % len(TOPICS)]} ({place})."
    return {
        "messages": [{"role": "user", "content": asked}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | draws


async def stream(client: httpx2.AsyncClient, asked: dict[str, Any]) -> Stream:
    """Send a request and read its answer to the end."""
    began = time.perf_counter()
    text, tokens, first, why = "", 0, 0.0, None
    async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            said = line.removeprefix("data: ")
            if not said or said == "[DONE]":
                continue
            event = json.loads(said)
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            first = first or time.perf_counter() - began
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                why = choice["finish_reason"] or why
    return Stream(text, tokens, first, time.perf_counter() - began, why)


async def together(client: httpx2.AsyncClient, bodies: list[dict[str, Any]]) -> tuple[list[Stream | BaseException], float]:
    """Return what each of the streams that begin at once got, and how many seconds all took."""
    began = time.perf_counter()
    found = await asyncio.gather(*(stream(client, asked) for asked in bodies), return_exceptions=True)
    return list(found), time.perf_counter() - began


async def leave(client: httpx2.AsyncClient, asked: dict[str, Any]) -> str:
    """Begin an answer and go away after the first piece."""
    async with client.stream("POST", "/v1/chat/completions", json={**asked, "max_tokens": 2000}) as response:
        async for _ in response.aiter_lines():
            return "left"
    return "no answer to leave"


async def misbehave(client: httpx2.AsyncClient, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """Do what must not hurt anybody else; return the status of each refusal."""
    long = {**bodies[0], "messages": [{"role": "user", "content": "word " * 100_000}]}

    async def status(**request: Any) -> int:
        return (await client.post("/v1/chat/completions", **request)).status_code

    statuses = {
        "long_prompt": await status(json=long),
        "malformed": await status(content=b'{"messages": [{"role": "user"'),
        "large_body": await status(content=b" " * 10_000_001),
        "wrong_key": await status(json=bodies[0], headers={"Authorization": "Bearer wrong"}),
    }
    left = await asyncio.gather(*(leave(client, asked) for asked in bodies[:8]))
    return statuses | {"left": left.count("left")}


def agreement(alone: list[Stream], found: list[Stream | BaseException]) -> dict[str, Any]:
    """Return how far the streams said together what each says alone."""

    def shared(place: int, text: str) -> int:
        pairs = zip(alone[place].text, text, strict=False)
        return sum(1 for _ in takewhile(lambda two: two[0] == two[1], pairs))

    texts = [one.text if isinstance(one, Stream) else "" for one in found]
    others = [[shared(other, text) for other in range(len(alone)) if other != place] for place, text in enumerate(texts)]
    own = [shared(place, text) for place, text in enumerate(texts)]
    return {
        "same_text": sum(one.text == text for one, text in zip(alone, texts, strict=True)),
        "mixed_up": sum(max(theirs) > mine for mine, theirs in zip(own, others, strict=True)),
        "parted_after": [mine for mine, one, text in zip(own, alone, texts, strict=True) if one.text != text],
    }


def peak_mib(process: int) -> float | None:
    """Return the most memory that a process had, where the system tells."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


async def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of a running server."""
    bodies = [body(place, options.tokens) for place in range(options.streams)]
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=600, limits=limits) as client:
        await stream(client, body(0, 4))  # warm
        began = time.perf_counter()
        alone = [await stream(client, asked) for asked in bodies]
        alone_seconds = time.perf_counter() - began
        found, seconds = await together(client, bodies)
        (again, _), statuses = await asyncio.gather(together(client, bodies), misbehave(client, bodies))
        healthy = (await client.get("/health")).status_code
    whole = [one for one in found if isinstance(one, Stream) and one.why]
    firsts = [one.first for one in whole]
    rates = [sum(one.tokens for one in streams) / took for streams, took in ((alone, alone_seconds), (whole, seconds))]
    return {
        "streams": options.streams,
        "tokens": sum(one.tokens for one in whole),
        "failed": options.streams - len(whole),
        **agreement(alone, found),
        "beside_misbehaviour": agreement(alone, again),
        "tokens_per_second_alone": round(rates[0], 1),
        "tokens_per_second_together": round(rates[1], 1),
        "ratio": round(rates[1] / rates[0], 2),
        "first_token_p50": round(float(np.quantile(firsts, 0.5)), 3),
        "first_token_p95": round(float(np.quantile(firsts, 0.95)), 3),
        "first_token_alone_p95": round(float(np.quantile([one.first for one in alone], 0.95)), 3),
        "statuses": statuses,
        "healthy_afterwards": healthy == 200,
    }


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the server answers."""
    for _ in range(600):
        try:
            if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            if server.poll() is not None:
                sys.exit(f"the server left with exit code {server.returncode}")
        time.sleep(0.2)
    sys.exit("the server did not start within two minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", type=Path, help="another model; by default the packaged SmolLM2-135M-Instruct")
    parser.add_argument("--quick", action="store_true", help="8 streams of 16 tokens")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    options = parser.parse_args()
    if options.quick:
        options.streams, options.tokens = 8, 16
    from preftune.demo import packaged_model

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    model = (options.model or packaged_model()).resolve()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "preftune", "serve", str(model), "--port", str(port), "--key", KEY]
        server = subprocess.Popen(command, cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stderr=subprocess.DEVNULL)
        try:
            wait_for(url, server)
            found = asyncio.run(measure(url, options)) | {"peak_mib": peak_mib(server.pid)}
        finally:
            server.terminate()
            server.wait(30)
    if not options.json:
        print(f"{found['tokens_per_second_together']} tokens/s together, {found['tokens_per_second_alone']} one by one")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
