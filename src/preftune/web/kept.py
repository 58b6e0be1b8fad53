"""Numbers of a whole store that are looked at again and again: in a small store they are always new, in a large one kept for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from fastapi import Request

QUICK_SECONDS = 1.0
PATIENCE = 20.0  # how many times as long as measuring took the numbers of a large store are kept
_ONE_AT_A_TIME = threading.Lock()  # two owners who look at once need one measurement
T = TypeVar("T")


@dataclass(frozen=True)
class Kept(Generic[T]):
    """A value with what it was measured from. state: of the store; at: when; took: seconds."""

    state: object
    at: datetime
    took: float
    value: T

    def is_good(self, state: object, now: datetime) -> bool:
        """Return whether to show it: nothing has come since, or measuring is slow and was done not long ago."""
        patience = timedelta(seconds=PATIENCE * self.took) if self.took > QUICK_SECONDS else timedelta()
        return state == self.state or now - self.at < patience


def kept(request: Request, name: str, state: Callable[[], object], measure: Callable[[], T]) -> Kept[T]:
    """Return what `measure` gives, as it is now; it is called where the state is another than when it was called last.

    In a large store, where it takes seconds in which raters would wait, it is called no more often than a twentieth of the time allows;
    `at` says how old the value is then. name: under which the app keeps it.
    """
    with _ONE_AT_A_TIME:
        seen, now = state(), datetime.now(UTC)
        known: Kept[T] | None = getattr(request.app.state, name, None)
        if known is None or not known.is_good(seen, now):
            begun = time.monotonic()
            value = measure()
            known = Kept(seen, now, time.monotonic() - begun, value)
            setattr(request.app.state, name, known)
    return known
