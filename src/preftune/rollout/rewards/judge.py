"""A judge behind an OpenAI-style URL as a reward: it grades each answer, or compares those of a prompt, each two in both orders.

Every verdict is kept (judge_cache.py) before the next step uses it, so a judge that goes away stops the run and costs nothing: the
same command again finds what was said, and asks for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path

import torch

from preftune.data.batches import Group
from preftune.data.remote import Ask as Request
from preftune.data.remote import RemoteError, complete_all
from preftune.errors import ConfigError, PreftuneError
from preftune.records import Message
from preftune.rollout.rewards.asking import Ask, Given
from preftune.rollout.rewards.judge_cache import JudgeCache, key_of
from preftune.rollout.rewards.judge_words import comparing, grading, read_better, read_grade
from preftune.rollout.rewards.source import JudgeSettings

TRIES = 3  # how often a judge is asked whose verdict cannot be read
VERDICT_TOKENS = 256
OF_THIS_REQUEST = frozenset({400, 413, 422})  # what a server says of a request that it cannot take; other requests it may

Question = tuple[Message, ...]


class JudgeReward:
    """The judge, its cache and what it may cost. run: whose calls count in the budget. where: how errors name its settings."""

    def __init__(self, settings: JudgeSettings, *, cache: Path, run: str, where: str = "rewards.judge") -> None:
        self.settings, self.endpoint, self.where = settings, settings.endpoint, where
        self.endpoint.key()  # a missing key is said before anything is sampled
        self.cache = JudgeCache(cache, run)
        self._calls = 0

    def score(self, asks: Sequence[Ask], groups: Sequence[Group]) -> Given:
        """Return the grade of each completion, 0 to 1, or its share of wins among the completions of its prompt (ties half)."""
        self._calls = 0
        return self._compared(asks) if self.settings.pairwise else self._graded(asks)

    def _graded(self, asks: Sequence[Ask]) -> Given:
        questions = [grading(ask.messages, ask.text, self.settings.criteria) for ask in asks]
        verdicts, why = self.verdicts(questions, read_grade)
        scores = torch.tensor([verdicts.get(question, 0.0) for question in questions])
        failures = {place: why[question] for place, question in enumerate(questions) if question not in verdicts}
        return Given(scores, failures, self._counts(len(failures)))

    def _compared(self, asks: Sequence[Ask]) -> Given:
        together: dict[int, list[int]] = {}
        for place, ask in enumerate(asks):
            together.setdefault(ask.prompt_index, []).append(place)
        if any(len(places) < 2 for places in together.values()):
            fix = "Set samples_per_prompt to 2 or more, or pairwise to false."
            raise ConfigError("a judge that compares needs two answers to each prompt", 'key "rewards.judge.pairwise"', fix)
        both = [two for places in together.values() for two in combinations(places, 2)]
        questions = {
            (a, b): comparing(asks[a].messages, asks[a].text, asks[b].text, self.settings.criteria)
            for one, other in both
            for a, b in ((one, other), (other, one))
            if asks[a].text != asks[b].text  # alike: a tie, and nobody need be asked
        }
        verdicts, why = self.verdicts(list(questions.values()), read_better)
        won: list[list[float]] = [[] for _ in asks]
        failures: dict[int, str] = {}
        turned = 0
        for a, b in both:
            orders = [questions.get((a, b)), questions.get((b, a))]
            unread = [question for question in orders if question is not None and question not in verdicts]
            if unread:
                failures |= {place: why[unread[0]] for place in (a, b) if place not in failures}
                continue
            first, second = (verdicts[q] if q is not None else 0.5 for q in orders)
            turned += first == second != 0.5  # it prefers a place, not an answer
            share = (first + 1 - second) / 2
            won[a].append(share)
            won[b].append(1 - share)
        failures = {place: reason for place, reason in failures.items() if not won[place]}
        scores = torch.tensor([sum(shares) / len(shares) if shares else 0.0 for shares in won])
        unread_pairs = sum(question not in verdicts for question in questions.values())
        return Given(scores, failures, self._counts(unread_pairs) | {"judge/turned": turned / max(1, len(both))})

    def _counts(self, unread: int) -> dict[str, float]:
        return {"judge/calls": float(self._calls), "judge/unread": float(unread)}

    def verdicts(
        self, questions: Sequence[Question], read: Callable[[str], float | None]
    ) -> tuple[dict[Question, float], dict[Question, str]]:
        """Return the verdict on each question that has one, and why there is none of the others."""
        verdicts: dict[Question, float] = {}
        why: dict[Question, str] = {}
        left = list(dict.fromkeys(questions))
        for attempt in range(TRIES):
            requests = {question: Request(question, 0.0 if attempt == 0 else 0.7, VERDICT_TOKENS, attempt) for question in left}
            replies = self._replies(requests, why)
            for question, reply in replies.items():
                verdict = read(reply)
                if verdict is None:
                    why[question] = f'gives no verdict that can be read ("{" ".join(reply.split())[-60:]}")'
                else:
                    verdicts[question] = verdict
            left = [question for question in left if question in replies and question not in verdicts]
            if not left:
                break
        return verdicts, why

    def _replies(self, requests: dict[Question, Request], why: dict[Question, str]) -> dict[Question, str]:
        """Return the reply to each request, kept ones unasked; one that the server cannot take has none, and `why` says so.

        Raises PreftuneError where the server does not answer, and where the budget is spent; what was answered is kept.
        """
        keys = {question: key_of(self.endpoint, request) for question, request in requests.items()}
        kept = self.cache.find(list(keys.values()))
        found = {question: kept[key] for question, key in keys.items() if key in kept}
        open_ones = [question for question in requests if question not in found]
        calls, tokens = self.cache.spent()
        affordable = open_ones if self.settings.max_calls is None else open_ones[: max(0, self.settings.max_calls - calls)]
        self._insist_on_tokens(calls, tokens)
        # Closed by hand where it is left early: what is under way is then dropped.
        with closing(complete_all(self.endpoint, [requests[question] for question in affordable])) as answers:
            for place, reply in answers:
                question = affordable[place]
                if isinstance(reply, RemoteError):
                    if reply.status not in OF_THIS_REQUEST:
                        raise self._gone(reply, len(found), len(requests))
                    why[question] = f"cannot judge it ({reply.what})"
                    continue
                self.cache.keep(keys[question], requests[question], reply)
                found[question] = reply.text
                self._calls += 1
                if self.settings.max_tokens is not None:
                    self._insist_on_tokens(*self.cache.spent())
        if len(affordable) < len(open_ones):
            raise self._spent("max_calls", f"{self.settings.max_calls:,} calls")
        return found

    def _insist_on_tokens(self, calls: int, tokens: int) -> None:
        if self.settings.max_tokens is not None and tokens >= self.settings.max_tokens:
            raise self._spent("max_tokens", f"{self.settings.max_tokens:,} tokens ({tokens:,} in {calls:,} calls)")

    def _spent(self, key: str, budget: str) -> PreftuneError:
        fix = f"Raise {key}: the run then starts again, and what was judged already costs nothing more."
        return PreftuneError(f"the judge's budget of {budget} is spent", f'key "{self.where}.{key}"', fix)

    def _gone(self, error: RemoteError, kept: int, of: int) -> PreftuneError:
        what = f"the judge does not answer ({error.what}); {kept} of {of} verdicts of this step are kept"
        fix = f"{error.fix} The same command again goes on from there.".strip()
        return PreftuneError(what, self.endpoint.url, fix)

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()
