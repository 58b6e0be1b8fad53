"""One `vllm serve`: its routes over HTTP, and whether it is one that we can learn from. All that is vLLM's own stands here.

Routes of vLLM 0.32 and 0.33: `/version`, `/v1/models`, `/tokenize`, `/v1/completions`; with VLLM_SERVER_DEV_MODE=1 also `/server_info`,
`/is_paused`, `/pause`, `/resume`, `/collective_rpc`, `/update_weight_version`, `/weight_info`, `/weight_checker`. vLLM is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import tenacity

from preftune.errors import ConfigError, PreftuneError

KNOWN = ("0.32", "0.33")  # API of reinforcement learning moves between versions: one that nobody has read is refused
TRIES = 4
PAUSE_SECONDS = 0.5  # doubled at each further try
CONNECT_SECONDS = 10.0
FIRST_SECONDS = 10.0  # for the first, smallest question: a server that hangs is said before the first step
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs"
TEXTS = (  # tokenised there and here alike, and read by both after each push
    "Write a function that returns the sum of two numbers, with type hints and a docstring.",
    "def add(first: int, second: int) -> int:\n    return first + second\n",
    "Grüße aus Köln: 東京は今日も晴れ 🙂 — “quoted”, naïve, 1,234.50 €.",
)


class Unanswered(PreftuneError):
    """A server did not do what it was asked, after all tries; another one may."""


class _Again(Exception):
    """An answer that says: later."""


class Server:
    """A `vllm serve` at a URL.

    timeout_seconds: longest silence of a request. model: the name that it serves. max_tokens: longest prompt and completion together.
    dtype: of its weights, as torch names it. logprobs_mode: what its log-probs are. Not filled before `look`.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model, self.max_tokens, self.dtype, self.logprobs_mode = "", 0, "", ""
        timeout = httpx2.Timeout(timeout_seconds, connect=CONNECT_SECONDS)
        # The environment's proxies are not used: they would break off what takes long.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx2.Client(base_url=self.url, timeout=timeout, limits=limits, trust_env=False)

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def look(self) -> None:
        """Learn what the server is. Raises ConfigError where it is no vLLM, of another version, or started otherwise than is needed."""
        version = str(self._json(self._answer("GET", "/version", tries=2, seconds=FIRST_SECONDS)).get("version"))
        if not version.startswith(tuple(f"{known}." for known in KNOWN)):
            what = f'it says that it is vLLM "{version}", and known are {" and ".join(KNOWN)}'
            raise ConfigError(what, self.url, "Start one of these versions: the API by which weights are changed differs in others.")
        if self._answer("GET", "/is_paused").status_code == 404:
            raise ConfigError("it does not take weights: it runs without the developer mode", self.url, f"Start it with {START}")
        try:
            served = self._get("/v1/models")["data"][0]
            self.model, self.max_tokens = str(served["id"]), int(served["max_model_len"])
            found = self._get("/server_info?config_format=json")["vllm_config"]["model_config"]
            self.logprobs_mode, self.dtype = str(found["logprobs_mode"]), str(found["dtype"]).removeprefix("torch.")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ConfigError("it does not tell what it serves as vLLM does", self.url, "Is there something between it and us?") from error
        if found.get("quantization") is not None:
            what = f"it serves a model that is quantised ({found['quantization']})"
            raise ConfigError(what, self.url, "Start it on the plain weights: quantised ones are not the policy's.")
        if self.logprobs_mode not in ("raw_logprobs", "processed_logprobs"):
            what = f'its log-probs are "{self.logprobs_mode}"'
            raise ConfigError(what, self.url, "Start it with --logprobs-mode processed_logprobs")
        self._post("/resume")  # a trainer that was killed may have left it paused

    def insist_on_tokens(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        """Raise ConfigError where the server turns these texts into other token ids."""
        for text, ours in zip(texts, ids, strict=True):
            theirs = self._post("/tokenize", {"model": self.model, "prompt": text, "add_special_tokens": False})["tokens"]
            if theirs != list(ours):
                place = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
                what = f'its tokenizer is another one: token {place + 1} of "{text[:40]}…" differs'
                raise ConfigError(what, self.url, "Start it on the folder that the run starts from.")

    def complete(
        self, prompt: Sequence[int], *, seed: int, temperature: float, max_new_tokens: int, stop_ids: frozenset[int]
    ) -> tuple[list[int], list[float], bool]:
        """Return (token ids, the log-prob of each, whether it ended by itself) of one sample.

        Raises Unanswered where there is none, and PreftuneError where the request itself is refused.
        """
        body = {
            **self._request(prompt, max_tokens=max_new_tokens, temperature=temperature),
            "seed": seed,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": sorted(stop_ids),
            "ignore_eos": True,  # what ends an answer is the policy's own end, given here
        }
        choice = self._choice(body)
        ids: Any = choice.get("token_ids")
        logprobs: Any = (choice.get("logprobs") or {}).get("token_logprobs")
        reason = choice.get("finish_reason")
        numbers = isinstance(ids, list) and ids and isinstance(logprobs, list) and len(ids) == len(logprobs) <= max_new_tokens
        if not numbers or not all(isinstance(p, float | int) and math.isfinite(p) for p in logprobs):
            raise Unanswered("it sent an answer without a log-prob for each token", self.url)
        if reason not in ("stop", "length") or (reason == "stop") != (ids[-1] in stop_ids):
            raise Unanswered(f'it sent an answer that ended with token {ids[-1]} for the reason "{reason}"', self.url)
        return ids, [float(p) for p in logprobs], reason == "stop"

    def read(self, ids: Sequence[int]) -> list[float]:
        """Return the log-prob of each token but the first, at temperature 1."""
        choice = self._choice(self._request(ids, max_tokens=1, temperature=1.0) | {"prompt_logprobs": 0})
        try:
            return [float(said[str(token)]["logprob"]) for token, said in zip(ids[1:], choice["prompt_logprobs"][1:], strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise Unanswered("it did not give the log-probs of a prompt", self.url) from error

    def _request(self, prompt: Sequence[int], *, max_tokens: int, temperature: float) -> dict[str, Any]:
        # All that would bias the draws is said to be off: the server may have defaults from the model's generation config.
        off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        return {"model": self.model, "prompt": list(prompt), "n": 1, "max_tokens": max_tokens, "temperature": temperature, **off}

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = self._post("/v1/completions", body).get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise Unanswered(f"it sent {len(choices) if isinstance(choices, list) else 'no'} answers where 1 was asked for", self.url)
        return choices[0]

    def load(self, folder: Path, label: str) -> None:
        """Read the weights of a folder in place of those that it has, and call them by this label.

        The server is paused meanwhile: what others asked of it is waited for, and its caches are emptied.
        """
        self._post("/pause?mode=wait")
        try:
            asked = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            answer = self._answer("POST", "/collective_rpc", asked, tries=1)
            if answer.status_code != 200:
                raise Unanswered(
                    f"it could not read the weights (status {answer.status_code}: {_told(answer)})",
                    self.url,
                    f"Does it see the folder {folder.parent} under that very path, and have room for the weights?",
                )
            self._post("/update_weight_version", {"new_version": label})
        finally:
            self._post("/resume")

    def label(self) -> str:
        """Return what the weights that it has are called."""
        return str(self._get("/weight_info").get("weight_version"))

    def checksums(self) -> dict[str, str]:
        """Return the hash of each of its weights."""
        return dict(self._post("/weight_checker", {"action": "checksum"})["checksums"])

    def _get(self, path: str) -> dict[str, Any]:
        return self._json(self._answer("GET", path))

    def _post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._json(self._answer("POST", path, body))

    def _json(self, answer: httpx2.Response) -> dict[str, Any]:
        where = f"{self.url}{answer.request.url.path}"
        if answer.status_code == 404:
            raise ConfigError("it has no such route", where, f"Is it a vLLM of version {' or '.join(KNOWN)}, started with {START}?")
        if answer.status_code >= 400:
            raise PreftuneError(f"it refused a request (status {answer.status_code}: {_told(answer)})", where)
        try:
            found = answer.json()
        except ValueError as error:
            raise Unanswered("its answer is no JSON", where) from error
        if not isinstance(found, dict):
            raise Unanswered("its answer is no JSON object", where)
        return found

    def _answer(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, tries: int = TRIES, seconds: float | None = None
    ) -> httpx2.Response:
        """Return what the server answers, asked again while it is busy or cannot be reached; asking twice does nothing twice."""

        def ask() -> httpx2.Response:
            answer = self._http.request(method, path, json=body, timeout=self._http.timeout if seconds is None else seconds)
            if answer.status_code in BUSY and tries > 1:
                raise _Again(f"status {answer.status_code}: {_told(answer)}")
            return answer

        retries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(tries),
            wait=tenacity.wait_random_exponential(multiplier=PAUSE_SECONDS, max=30),
            retry=tenacity.retry_if_exception_type((httpx2.TransportError, _Again)),
            reraise=True,
        )
        try:
            return retries(ask)
        except (httpx2.TransportError, _Again) as error:
            said = str(error) or type(error).__name__
            raise Unanswered(f"it does not answer ({said})", f"{self.url}{path.partition('?')[0]}", "Is it running?") from error


def _told(answer: httpx2.Response) -> str:
    return " ".join(answer.text.split())[:300] or "no reason given"
