"""Streamed answers as server-sent events: chat in OpenAI's chunks, analyses in their own."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Protocol

from serve.analyze import Analyst
from serve.errors import error_response, of_exception
from serve.service import Served, Service, new_id, now, usage_of
from serve.visit import log_failure
from stetholm.serving.analysis import AnalysisDelta
from stetholm.serving.engine import Delta, Request
from stetholm.serving.types import ChatChunk, ChunkChoice, ChunkDelta

DONE = "data: [DONE]\n\n"


class EventStream(Protocol):
    """An answer in events."""

    async def open(self) -> None:
        """Wait for the first piece, so that errors before it get a real status."""
        ...

    def events(self) -> AsyncIterator[str]:
        """All events."""
        ...


async def told(events: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """``events``, closed however they end. An error in the middle becomes an event too: the status is long sent."""
    async with aclosing(events):
        try:
            async for event in events:
                yield event
            yield DONE
        except Exception as error:
            answer = of_exception(error)
            if answer.status == 500:
                log_failure(error)
            yield f"data: {bytes(error_response(answer).body).decode()}\n\n"


class ChatStream:
    """One streamed chat answer."""

    def __init__(self, service: Service, served: Served, request: Request, include_usage: bool) -> None:
        """``include_usage``: a last chunk with the token counts, as ``stream_options`` asks for."""
        self._deltas, self._served = service.deltas(served, request), served
        self._include_usage = include_usage
        self._id, self._created = new_id("chatcmpl"), now()
        self._first: Delta | None = None
        self._last: dict[int, Delta] = {}

    async def open(self) -> None:
        """Wait for the first delta.

        Raises:
            ApiError, RequestError, EngineBusy: what went wrong before it.
        """
        self._first = await anext(self._deltas)

    def events(self) -> AsyncIterator[str]:
        """See :class:`EventStream`."""
        return told(self._events())

    async def _events(self) -> AsyncGenerator[str, None]:
        assert self._first is not None, "open() first"
        async with aclosing(self._deltas):
            yield self._event(self._first)
            async for delta in self._deltas:
                yield self._event(delta)
        if self._include_usage:
            yield self._dump(ChatChunk(**self._head(), choices=[], usage=usage_of(list(self._last.values()))))

    def _event(self, delta: Delta) -> str:
        first = delta.index not in self._last
        self._last[delta.index] = delta
        added = ChunkDelta(role="assistant" if first else None, content=delta.text)
        choice = ChunkChoice(index=delta.index, delta=added, finish_reason=delta.finish_reason)
        return self._dump(ChatChunk(**self._head(), choices=[choice]))

    def _head(self) -> dict[str, object]:
        return {"id": self._id, "created": self._created, "model": self._served.card.id}

    @staticmethod
    def _dump(chunk: ChatChunk) -> str:
        fields = chunk.model_dump(exclude={"usage"} if chunk.usage is None else None)
        for choice in fields["choices"]:
            choice["delta"] = {key: value for key, value in choice["delta"].items() if value is not None}
        return f"data: {json.dumps(fields)}\n\n"


class AnalysisStream:
    """One streamed analysis: its answer in pieces, then the whole result."""

    def __init__(self, analyst: Analyst) -> None:
        """``analyst`` has done nothing yet."""
        self._analyst = analyst
        self._pieces = analyst.pieces()
        self._first: str | None = None

    async def open(self) -> None:
        """Prepare, and wait for the first piece of the answer; an empty answer has none.

        Raises:
            ApiError, AudioError, RequestError, EngineBusy: what went wrong before it.
        """
        await self._analyst.prepare()
        self._first = await anext(self._pieces, None)

    def events(self) -> AsyncIterator[str]:
        """See :class:`EventStream`."""
        return told(self._events())

    async def _events(self) -> AsyncGenerator[str, None]:
        async with aclosing(self._pieces):
            if self._first is not None:
                yield self._event(self._first)
            async for text in self._pieces:
                yield self._event(text)
        yield f"data: {(await self._analyst.finish()).model_dump_json()}\n\n"

    def _event(self, text: str) -> str:
        return f"data: {AnalysisDelta(id=self._analyst.id, text=text).model_dump_json()}\n\n"
