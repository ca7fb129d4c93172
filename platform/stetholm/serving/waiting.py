"""Online requests between their readers (event loops) and whatever generates (another thread)."""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import replace

from stetholm.serving.engine import Delta, EngineBusy, Request
from stetholm.serving.rows import Row

Event = Delta | BaseException
"""What a reader gets."""
PACE_S = 0.04 / (os.cpu_count() or 1)
"""Pieces of one answer come at least so long apart for each other request that is being answered. A piece takes some
2 ms of processor time on its way through Ray Serve to its client, whether it holds one token or five: so, with many
readers, all of it together stays near a twentieth of the machine."""
PACE_MOST_S = 0.2
"""However many there are: beyond that text no longer seems to flow."""


class Waiting:
    """One online request, made in the event loop of its reader.

    Args:
        request: what is asked.
        gap: how long after a piece the next one may come, in s; the first and the last of an answer never wait.
        on_cancel: called, in whatever thread, when nobody wants the answer any more.
    """

    def __init__(
        self,
        request: Request,
        gap: Callable[[], float] = lambda: 0.0,
        on_cancel: Callable[[], object] | None = None,
    ) -> None:
        self.request = request
        self._gap = gap
        self.rows: list[Row] = []
        self.cancelled = False
        self.answered = False
        """Whether a piece of its answer has come."""
        self.on_cancel = on_cancel
        self._events: asyncio.Queue[Event] = asyncio.Queue()  # bounded by the request's token budget
        self._loop = asyncio.get_running_loop()

    def send(self, event: Event) -> None:
        """Called in the generating thread."""
        self.answered = True
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the reader's loop is closed: nobody listens
            self.cancel()

    def cancel(self) -> None:
        """Let the generation stop at its next token."""
        if self.cancelled:
            return
        self.cancelled = True
        for row in self.rows:
            row.cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """The deltas as they come, for the reader; cancels when the reader closes it.

        Raises:
            BaseException: what was sent instead of a delta.
        """
        unfinished = self.request.sampling.n
        until = 0.0
        try:
            while unfinished:
                for delta in await self._together(until):
                    unfinished -= delta.finish_reason is not None
                    yield delta
                until = self._loop.time() + self._gap()
        finally:
            self.cancel()

    async def _together(self, until: float) -> list[Delta]:
        """What comes ``until`` then (by the loop's clock), at least one, one an answer; an answer's end ends it."""
        found: dict[int, Delta] = {}
        while True:
            try:
                async with asyncio.timeout_at(until if found else None):
                    event = await self._events.get()
            except TimeoutError:
                return list(found.values())
            if isinstance(event, BaseException):
                raise event
            before = found.get(event.index)
            found[event.index] = _joined(before, event) if before else event
            if event.finish_reason or (self._events.empty() and self._loop.time() >= until):
                return list(found.values())


def _joined(before: Delta, after: Delta) -> Delta:
    return replace(after, text=before.text + after.text, tokens=before.tokens + after.tokens)


class Online(ABC):
    """An engine's online requests: how they come in, and how many may."""

    max_waiting: int
    _open: Collection[Waiting]
    """That wait or run."""
    _change: threading.Condition
    """Held, by one thread several times if need be, around what is below."""
    _closed: bool

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Deltas of one request; close the iterator to cancel."""
        waiting = Waiting(request, gap=self._gap)
        self._submit(waiting)
        async with aclosing(waiting.deltas()) as deltas:
            async for delta in deltas:
                yield delta

    @property
    def waiting(self) -> int:
        """Online requests that wait or run and still have a reader."""
        with self._change:
            return sum(not waiting.cancelled for waiting in self._open)

    def _gap(self) -> float:
        """Between two pieces of an answer, in s. Requests that still wait for their first need no processor."""
        with self._change:
            reading = sum(waiting.answered and not waiting.cancelled for waiting in self._open)
        return min(PACE_MOST_S, PACE_S * max(0, reading - 1))

    def _admit(self) -> None:
        """Refuse one more request where there is no room.

        Raises:
            EngineBusy: the engine is closed, or ``max_waiting`` have come already.
        """
        if self._closed:
            raise EngineBusy("the engine is closed")
        if self.waiting >= self.max_waiting:
            raise EngineBusy(f"{self.max_waiting} requests are waiting")

    @abstractmethod
    def _submit(self, waiting: Waiting) -> None:
        """Hand a request that was admitted to the engine."""
