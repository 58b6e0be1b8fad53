"""A server that follows the routes of `vllm serve`, on a port of this machine: our generator draws behind it. It can be ill, as told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from preftune.models.load import load_causal_lm, load_tokenizer
from preftune.rollout.stream import Batcher

LOADING = threading.Lock()  # transformers loads one model at a time in a process


@dataclass
class StandIn:
    """What the server is and how it is ill.

    status: path → (how often yet, status) of requests that fail. died: requests yet whose answer breaks off in the middle. dropped: pushes
    yet that it says were done and were not. half: whether it leaves out some layers of a push, as vLLM 0.32 on a CPU does with those that
    it has packed. drawn: how often each seed was answered. restart_at: after so many samples it is as if started again.
    """

    base: Path
    version: str = "0.33.0"
    developer: bool = True
    max_model_len: int = 512
    logprobs_mode: str = "processed_logprobs"
    quantization: str | None = None
    tokenizer_from: Path | None = None
    status: dict[str, tuple[int, int]] = field(default_factory=dict)
    died: int = 0
    dropped: int = 0
    half: bool = False
    wrong_label: str | None = None
    choices: int = 1
    shift: float = 0.0  # nats, of every log-prob
    slow_seconds: float = 0.0
    odd: dict[str, Any] = field(default_factory=dict)  # put over a sample's fields
    restart_at: int | None = None
    url: str = ""
    drawn: Counter[int] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)

    def start_again(self) -> None:
        """Have the weights that it is started with."""
        self.model = load_causal_lm(self.base, device=torch.device("cpu"))
        self.tokenizer = load_tokenizer(self.tokenizer_from or self.base)
        self.label, self.paused = "default", False

    def ill(self, path: str) -> int | None:
        """Return the status that this request fails with, if it does."""
        self.paths[path] += 1
        left, status = self.status.get(path, (0, 0))
        if not left:
            return None
        self.status[path] = (left - 1, status)
        return status

    def load(self, folder: str) -> None:
        """Read the weights of a folder; raise OSError where there is none."""
        if self.dropped:
            self.dropped -= 1
            return
        with LOADING:
            found = load_causal_lm(Path(folder), device=torch.device("cpu"))
        kept = {name for name in found.state_dict() if self.half and "mlp" in name}
        self.model.load_state_dict({n: t for n, t in found.state_dict().items() if n not in kept}, strict=False)

    def sample(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a choice, drawn with the seed that came."""
        batcher = Batcher(self.model, pad_id=0)
        batcher.add(
            body["prompt"],
            seed=body["seed"],
            temperature=body["temperature"],
            max_new_tokens=body["max_tokens"],
            stop_ids=frozenset(body["stop_token_ids"]),
        )
        tokens = [token for _ in iter(lambda: batcher.busy, False) for token in batcher.step()]
        logprobs = [token.logprob + self.shift for token in tokens]
        reason = "stop" if tokens[-1].finished else "length"
        choice = {"index": 0, "text": "", "logprobs": {"token_logprobs": logprobs}, "finish_reason": reason}
        return {**choice, "token_ids": [token.token for token in tokens], **self.odd}

    @torch.no_grad()
    def read(self, ids: list[int]) -> dict[str, Any]:
        """Return a choice with the log-probs of the prompt's tokens, by transformers' own forward pass."""
        logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        said = [{str(token): {"logprob": float(row[token]) + self.shift}} for token, row in zip(ids[1:], logprobs, strict=False)]
        return {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": [None, *said]}


def make_app(server: StandIn) -> FastAPI:
    """Return the app with vLLM's routes."""
    app = FastAPI(openapi_url=None)

    @app.middleware("http")
    async def illness(request: Request, go_on: Any) -> Response:
        if (status := server.ill(request.url.path)) is not None:
            return JSONResponse({"error": {"message": "ill"}}, status_code=status)
        return await go_on(request)

    @app.get("/version")
    def version() -> dict[str, str]:
        return {"version": server.version}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"data": [{"id": "policy", "max_model_len": server.max_model_len}]}

    @app.post("/tokenize")
    def tokenize(body: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": server.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"]).input_ids}

    @app.post("/v1/completions")
    def completions(body: dict[str, Any]) -> Response:
        assert (body["n"], body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1, 1.0, 0, 0.0, 1.0)
        if server.paused:
            return JSONResponse({"error": {"message": "paused"}}, status_code=503)
        time.sleep(server.slow_seconds)
        with server.lock:
            choice = server.sample(body) if "seed" in body else server.read(body["prompt"])
            if server.died and "seed" in body:
                server.died -= 1
                return StreamingResponse(_breaks_off(), headers={"content-length": "1000"}, media_type="application/json")
            if "seed" in body:
                server.drawn[body["seed"]] += 1
                if server.restart_at == server.drawn.total():
                    server.start_again()
        count = server.choices if "seed" in body else 1
        return JSONResponse({"model": body["model"], "choices": [choice] * count})

    if server.developer:
        _add_developer_routes(app, server)
    return app


def _add_developer_routes(app: FastAPI, server: StandIn) -> None:
    @app.get("/server_info")
    def server_info(config_format: str) -> dict[str, Any]:
        assert config_format == "json"
        told = {"logprobs_mode": server.logprobs_mode, "dtype": "torch.float32", "quantization": server.quantization}
        return {"vllm_config": {"model_config": told}}

    @app.get("/is_paused")
    def is_paused() -> dict[str, bool]:
        return {"is_paused": server.paused}

    @app.post("/pause")
    def pause(mode: str) -> dict[str, str]:
        server.paused = mode == "wait"
        return {"status": "paused"}

    @app.post("/resume")
    def resume() -> dict[str, str]:
        server.paused = False
        return {"status": "resumed"}

    @app.post("/collective_rpc")
    def collective_rpc(body: dict[str, Any]) -> Response:
        assert body["method"] == "reload_weights"
        assert server.paused
        try:
            server.load(body["kwargs"]["weights_path"])
        except Exception as error:
            return JSONResponse({"error": {"message": str(error)}}, status_code=500)
        return JSONResponse({"results": [None]})

    @app.post("/update_weight_version")
    def update_weight_version(body: dict[str, str]) -> dict[str, Any]:
        server.label = server.wrong_label or body["new_version"]
        return {"success": True}

    @app.get("/weight_info")
    def weight_info() -> dict[str, str]:
        return {"weight_version": server.label}

    @app.post("/weight_checker")
    def weight_checker(body: dict[str, str]) -> dict[str, Any]:
        assert body == {"action": "checksum"}
        return {"checksums": {name: str(hash(t.numpy().tobytes())) for name, t in server.model.state_dict().items()}}


async def _breaks_off() -> AsyncIterator[bytes]:
    yield b'{"choices": ['
    raise ConnectionResetError("as told")


@contextmanager
def standing_in(*servers: StandIn) -> Iterator[list[str]]:
    """Serve each, and yield their URLs."""
    running = []
    try:
        for one in servers:
            one.start_again()
            server = uvicorn.Server(uvicorn.Config(make_app(one), port=0, log_level="critical", timeout_graceful_shutdown=1))
            thread = threading.Thread(target=server.run)
            thread.start()
            running.append((server, thread))
            while not server.started:
                time.sleep(0.01)
            one.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield [one.url for one in servers]
    finally:
        for server, thread in running:
            server.should_exit = True
            thread.join()
