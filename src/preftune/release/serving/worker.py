"""One thread that owns the model: whoever asks at the same time is decoded together."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from preftune.errors import PreftuneError
from preftune.rollout.stream import Batcher, Drawn


@dataclass(eq=False)
class Ticket:
    """A request's place in the worker. queue: its tokens as they are drawn; an error instead of them ends it."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Drawn | Exception] = field(default_factory=asyncio.Queue)
    handle: int | None = None


class Worker:
    """Decodes in a thread of its own. `ask`, `cancel` and `close` may be called from any thread."""

    def __init__(self, model: nn.Module, pad_id: int) -> None:
        self._model, self._pad_id = model, pad_id
        self._batcher = Batcher(model, pad_id=pad_id)
        self._tickets: dict[int, Ticket] = {}
        self._orders: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="preftune-decode", daemon=True)
        self._thread.start()

    def ask(self, prompt: list[int], **settings: Any) -> Ticket:
        """Queue a request of the running event loop; `settings` are those of `Batcher.add`."""
        ticket = Ticket(asyncio.get_running_loop())
        self._order(lambda: self._add(ticket, prompt, settings))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Give a request up; one that has ended is left."""
        self._order(lambda: self._drop(ticket))

    def close(self) -> None:
        """Stop after the step that runs."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _order(self, order: Callable[[], None]) -> None:
        with self._changed:
            self._orders.append(order)
            self._changed.notify()

    def _add(self, ticket: Ticket, prompt: list[int], settings: dict[str, Any]) -> None:
        try:
            ticket.handle = self._batcher.add(prompt, **settings)
        except PreftuneError as error:
            _tell([(ticket, error)])
            return
        self._tickets[ticket.handle] = ticket

    def _drop(self, ticket: Ticket) -> None:
        if ticket.handle is not None and self._tickets.pop(ticket.handle, None) is not None:
            self._batcher.cancel(ticket.handle)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._orders or self._closed or self._batcher.busy)
                if self._closed:
                    return
                orders = list(self._orders)
                self._orders.clear()
            for order in orders:
                order()
            try:
                drawn = self._batcher.step()
            except Exception as error:  # whatever it was, those who wait must hear of it, and the next ones be served
                _tell([(ticket, error) for ticket in self._tickets.values()])
                self._tickets.clear()
                self._batcher = Batcher(self._model, pad_id=self._pad_id)
                continue
            _tell([(self._tickets[d.handle], d) for d in drawn if d.handle in self._tickets])
            for d in drawn:
                if d.last:
                    self._tickets.pop(d.handle, None)


def _tell(news: list[tuple[Ticket, Drawn | Exception]]) -> None:
    for ticket, what in news:
        if not ticket.loop.is_closed():
            ticket.loop.call_soon_threadsafe(ticket.queue.put_nowait, what)
