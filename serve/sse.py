"""Streamed chat answers as server-sent events, in OpenAI's chunks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from serve.errors import error_response, of_exception
from serve.service import Served, Service, new_id, now, usage_of
from stetholm.serving.engine import Delta, Request
from stetholm.serving.types import ChatChunk, ChunkChoice, ChunkDelta

DONE = "data: [DONE]\n\n"


class ChatStream:
    """One streamed answer. :meth:`open` waits for its first token, so that errors before it get a real status."""

    def __init__(self, service: Service, served: Served, request: Request, include_usage: bool) -> None:
        """``include_usage``: a last chunk with the token counts, as ``stream_options`` asks for."""
        self._deltas = service.deltas(served, request)
        self._include_usage = include_usage
        self._id, self._created, self._model = new_id("chatcmpl"), now(), served.card.id
        self._first: Delta | None = None
        self._last: dict[int, Delta] = {}

    async def open(self) -> None:
        """Wait for the first delta.

        Raises:
            ApiError, RequestError, EngineBusy: what went wrong before it.
        """
        self._first = await anext(self._deltas)

    async def events(self) -> AsyncIterator[str]:
        """All events. An error in the middle becomes an event too: the status is long sent."""
        try:
            assert self._first is not None, "open() first"
            yield self._event(self._first)
            async for delta in self._deltas:
                yield self._event(delta)
            if self._include_usage:
                yield self._dump(ChatChunk(**self._head(), choices=[], usage=usage_of(list(self._last.values()))))
            yield DONE
        except Exception as error:
            yield f"data: {bytes(error_response(of_exception(error)).body).decode()}\n\n"
        finally:
            await self._deltas.aclose()

    def _event(self, delta: Delta) -> str:
        first = delta.index not in self._last
        self._last[delta.index] = delta
        added = ChunkDelta(role="assistant" if first else None, content=delta.text)
        choice = ChunkChoice(index=delta.index, delta=added, finish_reason=delta.finish_reason)
        return self._dump(ChatChunk(**self._head(), choices=[choice]))

    def _head(self) -> dict[str, object]:
        return {"id": self._id, "created": self._created, "model": self._model}

    @staticmethod
    def _dump(chunk: ChatChunk) -> str:
        fields = chunk.model_dump(exclude={"usage"} if chunk.usage is None else None)
        for choice in fields["choices"]:
            choice["delta"] = {key: value for key, value in choice["delta"].items() if value is not None}
        return f"data: {json.dumps(fields)}\n\n"
