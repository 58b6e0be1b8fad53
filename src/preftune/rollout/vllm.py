"""Samples from `vllm serve`, one or several, each in an environment of its own and reached over HTTP.

    open:     each server is looked at: version, developer mode, length, tokenizer
    push:     the merged policy is written to a folder that the servers see; each is paused, reads it, goes on, and must then
              say the new label, have other checksums than before, and give the log-probs of some texts as these weights do
    generate: a request a sample, with its own seed; what fails is asked of another server
              at the end each server must still say the label: one that was started again gets the weights, and its samples are drawn anew

A server that fails several times is left out until the next push; the run fails where none is left. Weights go by disk: vLLM's transfer
engine (NCCL) is not used. The servers are paused while they read, not while the policy learns: they are asked nothing then.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from preftune.errors import ConfigError, DiskError, PreftuneError
from preftune.manifest import content_seed
from preftune.models.load import load_tokenizer, tokenizer_folder
from preftune.rollout.backends import VllmRollout
from preftune.rollout.client import Sampling, Start, Weights
from preftune.rollout.generate import Sample
from preftune.rollout.vllm_server import START, TEXTS, Server, Unanswered
from preftune.rollout.vllm_weights import Pushed, write_weights

FAILURES = 3  # requests in a row, each tried several times, after which a server is left out
BRINGS = 2  # a push that a server loses is made once more
Wish = tuple[int, int]  # prompt, sample


class _Served:
    """A server as the client sees it. out: why it is left out; had: what it had last (content written, its checksums, what it read)."""

    def __init__(self, server: Server) -> None:
        self.server, self.url = server, server.url
        self.failures = 0
        self.out: str | None = None
        self.had: tuple[str, dict[str, str], list[list[float]]] | None = None


class VllmClient:
    """`Client` by `vllm serve`. note: says a sentence to the person who watches."""

    def __init__(self, config: VllmRollout, start: Start, note: Callable[[str], None]) -> None:
        self._config, self._start, self._note = config, start, note
        self._lock = threading.Lock()
        self._pushed: Pushed | None = None
        self._retried = self._brought = 0
        self._gap = self._push_seconds = 0.0
        self._name = f"preftune-{secrets.token_hex(4)}"
        self._folder = _writable(Path(config.weights) / self._name)
        tokenizer = load_tokenizer(tokenizer_folder(start.base))
        self._probes = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
        self._servers = [_Served(Server(url, config.timeout_seconds)) for url in config.urls]
        try:
            for served in self._servers:
                served.server.look()
                served.server.insist_on_tokens(TEXTS, self._probes)
            self._dtype = self._one_dtype()
        except BaseException:
            self.close()
            raise

    def _one_dtype(self) -> torch.dtype:
        found = {served.server.dtype: served.url for served in self._servers}
        dtype = getattr(torch, next(iter(found)), None)
        if len(found) > 1 or not isinstance(dtype, torch.dtype):
            told = ", ".join(f"{url} {name}" for name, url in found.items())
            raise ConfigError(f"the servers compute in {told}", 'key "rollout.urls"', "Start all with the same --dtype, such as bfloat16.")
        return dtype

    def push_weights(self, weights: Weights) -> None:
        """As `Client`: each server has them and is seen to use them, or is left out."""
        began, label = time.monotonic(), f"{self._name}-{weights.version}"
        before = self._pushed
        folder = self._folder / f"{weights.version:06d}"
        self._pushed = write_weights(weights, self._start, folder, label=label, dtype=self._dtype, probes=self._probes)
        self._gap = 0.0
        with ThreadPoolExecutor(len(self._servers)) as threads:
            list(threads.map(self._bring, self._servers))
        self._insist_on_one()
        if before is not None and before.folder != folder:
            shutil.rmtree(before.folder, ignore_errors=True)
        self._push_seconds = time.monotonic() - began

    def _bring(self, served: _Served) -> None:
        """Give a server the weights, and leave it out where it is not seen to have them."""
        assert self._pushed is not None
        why = ""
        for _ in range(BRINGS):
            try:
                self._load(served, self._pushed)
            except PreftuneError as error:
                why = str(error)
            else:
                if served.out is not None:
                    self._note(f"{served.url} is back, with the weights of round {self._pushed.version}.")
                served.failures, served.out = 0, None
                return
        self._leave_out(served, why)

    def _load(self, served: _Served, pushed: Pushed) -> None:
        server = served.server
        if served.had is None:
            served.had = ("", server.checksums(), [server.read(ids) for ids in self._probes])
        content, checksums, read = served.had
        server.load(pushed.folder, pushed.label)
        if (label := server.label()) != pushed.label:
            raise Unanswered(f'it calls its weights "{label}" after a push of "{pushed.label}"', served.url)
        now = server.checksums(), [server.read(ids) for ids in self._probes]
        if content not in ("", pushed.content) and now == (checksums, read):
            raise Unanswered("it took a push, and has the same weights as before", served.url, "Look at its log.")
        gap = max(abs(a - b) for ours, theirs in zip(pushed.read, now[1], strict=True) for a, b in zip(ours, theirs, strict=True))
        if not gap <= self._config.tolerance:  # nan too
            what = f"after the push of round {pushed.version} it gives a token another log-prob than the policy does: {gap:.3g} nats apart"
            raise Unanswered(what, served.url, "Does it serve the model that the run starts from, unquantised? See rollout.tolerance.")
        with self._lock:
            self._gap = max(self._gap, gap)
        served.had = (pushed.content, *now)

    def generate(self, prompts: Sequence[Sequence[int]], keys: Sequence[str], sampling: Sampling, *, seed: int) -> list[Sample]:
        """As `Client`. Raises PreftuneError where no server is left, and ConfigError where one cannot draw what is asked."""
        assert self._pushed is not None
        self._insist_on_room(prompts, sampling)
        wishes = [(i, k) for i in range(len(prompts)) for k in range(sampling.samples_per_prompt)]
        found: dict[Wish, Sample] = {}

        def one(server: Server, wish: Wish) -> Sample:
            i, k = wish
            ids, logprobs, finished = server.complete(
                prompts[i],
                seed=content_seed(seed, keys[i], k),
                temperature=sampling.temperature,
                max_new_tokens=sampling.max_new_tokens,
                stop_ids=sampling.stop_ids,
            )
            assert self._pushed is not None
            return Sample(i, k, tuple(ids), tuple(logprobs), finished, version=self._pushed.version)

        while missing := [wish for wish in wishes if wish not in found]:
            self._insist_on_one()
            for server, drawn in self._draw(missing, one):
                if self._still_has(server):
                    found |= drawn
                elif server.out is None:
                    self._brought += 1
                    self._note(f"{server.url} no longer has the policy's weights: it gets them again, and draws {len(drawn)} samples anew.")
                    self._bring(server)
        return [found[wish] for wish in wishes]

    def _draw(self, wishes: Sequence[Wish], one: Callable[[Server, Wish], Sample]) -> list[tuple[_Served, dict[Wish, Sample]]]:
        """Return what each server drew of these wishes; those that failed are in nobody's."""
        waiting, wrong = deque(wishes), list[BaseException]()
        drawn: list[tuple[_Served, dict[Wish, Sample]]] = [(server, {}) for server in self._servers if server.out is None]

        def work(server: _Served, mine: dict[Wish, Sample]) -> None:
            while server.out is None:
                try:
                    wish = waiting.popleft()
                except IndexError:
                    return
                try:
                    mine[wish] = one(server.server, wish)
                except Unanswered as error:
                    waiting.appendleft(wish)
                    self._count_failure(server, error)
                except BaseException as error:  # handed to the caller's thread, which raises it
                    wrong.append(error)
                    waiting.clear()

        at_once = min(self._config.concurrency, len(wishes))
        with ThreadPoolExecutor(at_once * len(drawn)) as threads:
            for server, mine in drawn:
                for _ in range(at_once):
                    threads.submit(work, server, mine)
        if wrong:
            raise wrong[0]
        return drawn

    def _still_has(self, served: _Served) -> bool:
        """Say whether a server still has the weights of the last push; where it has, its failures are forgotten."""
        assert self._pushed is not None
        try:
            same = served.server.label() == self._pushed.label
        except Unanswered as error:
            self._count_failure(served, error)
            return False
        if same and served.out is None:
            served.failures = 0
        return same

    def _count_failure(self, served: _Served, error: Unanswered) -> None:
        with self._lock:
            self._retried += 1
            served.failures += 1
            leave = served.failures == FAILURES
        if leave:
            self._leave_out(served, str(error))

    def _leave_out(self, served: _Served, why: str) -> None:
        if served.out is None:
            self._note(f"A rollout server is left out until the next push. {why}")
        served.out = why

    def _insist_on_one(self) -> None:
        if all(served.out is not None for served in self._servers):
            reasons = " ".join(f"({number}) {served.out}" for number, served in enumerate(self._servers, start=1))
            what = f"no rollout server is left: {reasons}"
            raise PreftuneError(what, "rollout", "Put it right, and give the same command again: the run goes on from its last checkpoint.")

    def _insist_on_room(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        for served in self._servers:
            if longest > served.server.max_tokens:
                what = f"it reads {served.server.max_tokens:,} tokens, and prompt and completion may have {longest:,}"
                raise ConfigError(what, served.url, f"Start it with --max-model-len {longest}, or lower max_tokens or max_new_tokens.")
            if sampling.temperature != 1 and served.server.logprobs_mode != "processed_logprobs":
                what = f'its log-probs leave the temperature out ("{served.server.logprobs_mode}"), which is {sampling.temperature:g} here'
                raise ConfigError(what, served.url, f"Start it with {START}")

    def version(self) -> int | None:
        """As `Client`."""
        return None if self._pushed is None else self._pushed.version

    def health(self) -> dict[str, float]:
        """Return numbers for the run's metrics."""
        return {
            "rollout/servers": float(sum(served.out is None for served in self._servers)),
            "rollout/retried": float(self._retried),
            "rollout/brought_again": float(self._brought),
            "rollout/push_seconds": self._push_seconds,
            "rollout/push_gap": self._gap,
        }

    def close(self) -> None:
        """Remove the weights that were written, and close the connections; the servers go on."""
        for served in self._servers:
            served.server.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        what = f"no weights can be written to {folder.parent} ({error.strerror})"
        raise DiskError(what, 'key "rollout.weights"', "Name a folder that this machine and the servers see under one path.") from error
    return folder.resolve()
