"""Where feedback comes in: what users are told, who they are (a pseudonym), and which answer they speak of."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import asdict, dataclass
from typing import Any

from preftune.data.feedback import Answer, Word, record_consent, take
from preftune.data.feedback_results import SideBySide, SplitResult, side_by_side, split_result
from preftune.data.store import Store
from preftune.errors import DataError
from preftune.release.serving.asked import AskedFeedback
from preftune.release.serving.given import GivenAnswers
from preftune.release.serving.problems import Problem
from preftune.web.choosing import secret

KEEP_DAYS = 90
CONSENT = """\
Your feedback is kept to improve this model: the conversation up to the answer, the answer, and what you say about it.
It is kept under a made-up name, not under yours. The people who run this server can read it and train models on it.
It is deleted {days} days after your last word on that answer. Data sets and models made before that day keep what they took.
Leave out what must not be kept: passwords, and what is said of other people.
"""


class Desk:
    """Takes feedback into a store. consent: what users are told, `{days}` in it stands for keep_days."""

    def __init__(self, store: Store, *, keep_days: int = KEEP_DAYS, consent: str = CONSENT) -> None:
        self.store, self.keep_days = store, keep_days
        self.consent = consent.replace("{days}", str(keep_days)).strip()
        self.consent_id = record_consent(store, self.consent)
        with store.writer() as writer:
            self.secret = secret(writer.connection, "feedback")
        self.given = GivenAnswers()

    @property
    def terms(self) -> dict[str, Any]:
        """What a client shows before it sends the first word."""
        return {"consent": {"id": self.consent_id, "text": self.consent}, "keep_days": self.keep_days}

    def rater(self, user: str) -> str:
        """Return a user's pseudonym: the same one each time, from which nobody without the store's secret finds the user."""
        return f"user-{hmac.new(self.secret.encode(), user.encode(), hashlib.sha256).hexdigest()[:12]}"

    def take(self, asked: AskedFeedback, user: str | None) -> dict[str, Any]:
        """Write what was said into the store. user: None = nobody knows, so that each answer has a rater of its own.

        Raises Problem 404 where an answer is not (or no longer) known, 400 where the consent shown was another, DataError as `take`.
        """
        if asked.consent != self.consent_id:
            said = "The consent text has changed, or was not shown. Get it from GET /v1/feedback, show it, and send its id as consent."
            raise Problem(400, said, "consent_required", "consent")
        answers = tuple(self._find(one.id, one.index) for one in asked.answers)
        if any("\0" in text for text in (asked.edit, asked.comment) if text):
            raise Problem(400, "A text holds a NUL character, which no database keeps. Leave it out.", "invalid_request")
        rater = self.rater(f"user {user}" if user is not None else f"answer {answers[0].id}")
        word = Word(answers, rater, asked.thumb, asked.edit, asked.better, asked.comment)
        taken = take(self.store, word, consent=self.consent_id, keep_days=self.keep_days)
        return {"object": "feedback", "id": taken.judgement, "new": taken.new, "rater": rater, "keep_days": self.keep_days}

    def _find(self, name: str, index: int) -> Answer:
        found = self.given.find(name, index)
        if found is None:
            said = (
                f"There is no chat answer {name} with index {index} here, or it was given too long ago. Ask again and judge the new answer."
            )
            raise Problem(404, said, "answer_not_found", "answers")
        return found


@dataclass(frozen=True)
class Results:
    """What was said so far. split: of the two models that users are divided between. side: of the release beside the base."""

    split: SplitResult | None
    side: SideBySide | None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, with the verdicts in words."""
        return {
            name: None if one is None else {**asdict(one), "says": one.says} for name, one in (("split", self.split), ("side", self.side))
        }


def results(store: Store, split: tuple[str, str] | None, side: tuple[str, str] | None) -> Results:
    """Return the results so far of a split and of a side-by-side view."""
    try:
        return Results(split_result(store, *split) if split else None, side_by_side(store, *side) if side else None)
    except ValueError as error:
        raise DataError(str(error), "feedback") from error
