"""A share of the default model's requests for another version, chosen by a hash and not by chance."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Literal

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve.backend import ReplicaBackend
from serve.errors import ApiError
from serve.visit import key_name, request_id
from stetholm.serving.analysis import Evidence
from stetholm.serving.engine import Completion, Delta, Request, collect
from stetholm.serving.identity import ModelCard

logger = logging.getLogger("stetholm.serve")
LOOK_AGAIN_S = 2.0
PATIENCE_S = 3.0
"""How long a request waits for the canary to take it; one whose deployment is being removed never would."""


def drawn(name: str, share: float) -> bool:
    """Whether ``name`` belongs to the share: always the same answer, and the wider share holds the narrower one."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    return place < share


class Canary:
    """Who asks, and whether the canary can answer yet."""

    def __init__(self, backend: ReplicaBackend, share: float, by: Literal["request", "key"]) -> None:
        """``share`` of requests, by the id of each or by the name of its key."""
        self.backend, self._share, self._by = backend, share, by
        self._up = False
        self._looking: asyncio.Task[None] | None = None

    def takes(self) -> bool:
        """Whether the request that is being answered is one of its own. None is, until it has first answered us."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        # Without keys there is nothing to tell clients apart by.
        name = (key_name.get() if self._by == "key" else None) or request_id.get()
        return self._up and drawn(name, self._share)

    async def _look(self) -> None:
        while not self._up:
            try:
                await self.backend.ready()
                self._up = True
            except (ApiError, RayError, RayServeException) as error:
                logger.warning("the canary does not answer yet (%s)", type(error).__name__)
                await asyncio.sleep(LOOK_AGAIN_S)


class CanaryBackend:
    """The canary for one request, and the default model if the canary fails in whatever way before its first word."""

    def __init__(
        self, canary: ReplicaBackend, default: ReplicaBackend, failed: Callable[[Exception], None] = lambda _: None
    ) -> None:
        """Both made for this request. ``failed`` is told how the canary did."""
        self._turn, self._default, self._failed = canary, default, failed
        canary.patience_s = PATIENCE_S

    @property
    def told(self) -> ModelCard | None:
        """Who answered."""
        return self._turn.told

    async def complete(self, request: Request) -> list[Completion]:
        """See :class:`serve.backend.Backend`. As a stream: it tells at once whether a replica has taken the request."""
        try:
            async with aclosing(self._turn.stream(request)) as deltas:
                return collect([delta async for delta in deltas], request.sampling.n)
        except Exception as error:
            self._give_up(error)
        return await self._turn.complete(request)

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """See :class:`serve.backend.Backend`."""
        started = False
        try:
            async with aclosing(self._turn.stream(request)) as deltas:
                async for delta in deltas:
                    started = True
                    yield delta
            return
        except Exception as error:
            if started:
                raise
            self._give_up(error)
        async with aclosing(self._turn.stream(request)) as deltas:
            async for delta in deltas:
                yield delta

    def _give_up(self, error: Exception) -> None:
        self._failed(error)
        logger.warning("the canary has failed (%s): the default model answers", type(error).__name__)
        self._turn = self._default

    async def explain(self, request: Request, answer: str, seconds: Sequence[float]) -> list[Evidence]:
        """See :class:`serve.backend.Backend`."""
        return await self._turn.explain(request, answer, seconds)

    async def ready(self) -> None:
        """See :class:`serve.backend.Backend`."""
        await self._turn.ready()
