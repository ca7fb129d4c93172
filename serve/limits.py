"""How much a key may ask: rates and quotas such as ``60/minute; 5000/day``, counted once for all ingress replicas.

A rate (up to an hour) is a moving window: never more within any 60 s. A quota (a day and longer) is a window that
begins with the first request. Counts are kept in memory and begin anew when the endpoint is deployed anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, RateLimiter
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from stetholm.errors import UserError

logger = logging.getLogger("stetholm.serve")
PATIENCE_S = 2.0
"""The meter answers within milliseconds, or is being started again."""
RATE_SECONDS = 3600
"""Windows up to here are rates, longer ones quotas."""


def check_limits(text: str, where: str) -> None:
    """Raises UserError, naming ``where``, unless ``text`` is a list of limits."""
    try:
        items = parse_many(text)
    except ValueError as error:
        raise UserError(f'{where}: {text!r} is no list of limits: write e.g. "60/minute; 5000/day"') from error
    if any(item.amount < 1 for item in items):
        raise UserError(f"{where}: a limit must allow at least 1 request")


@dataclass(frozen=True)
class Refusal:
    """A limit that is used up: ``quota`` or rate, how much it allows, and when to ask again."""

    limit: str
    quota: bool
    retry_after_s: int


class Limiter(Protocol):
    """Counts requests."""

    async def take(self, name: str, limits: str) -> Refusal | None:
        """Count one request of key ``name``; if one of its ``limits`` is used up, say which, and count nothing."""
        ...


class LocalLimiter:
    """Counts in this process."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        storage = MemoryStorage()
        self._rates, self._quotas = MovingWindowRateLimiter(storage), FixedWindowRateLimiter(storage)

    async def take(self, name: str, limits: str) -> Refusal | None:
        """See :class:`Limiter`. There is no ``await`` inside: nothing comes between asking and counting."""
        items = [(self._strategy(item), item) for item in parse_many(limits)]
        for strategy, item in items:
            if not strategy.test(item, name):
                wait = strategy.get_window_stats(item, name).reset_time - time.time()
                return Refusal(str(item), item.get_expiry() > RATE_SECONDS, max(1, math.ceil(wait)))
        for strategy, item in items:
            strategy.hit(item, name)
        return None

    def _strategy(self, item: RateLimitItem) -> RateLimiter:
        return self._quotas if item.get_expiry() > RATE_SECONDS else self._rates


@serve.deployment(name="Meter", num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Meter:
    """The one place that counts for all ingress replicas."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        self._limiter = LocalLimiter()

    async def take(self, name: str, limits: str) -> Refusal | None:
        """See :class:`Limiter`."""
        return await self._limiter.take(name, limits)


class SharedLimiter:
    """Asks the :class:`Meter`."""

    def __init__(self, meter: DeploymentHandle) -> None:
        """``meter``: handle of the deployment."""
        self._take: Any = meter.options(method_name="take")

    async def take(self, name: str, limits: str) -> Refusal | None:
        """See :class:`Limiter`. While the meter is away requests pass: their key is known, only not how many."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                refusal: Refusal | None = await self._take.remote(name, limits)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("the meter of limits does not answer (%s): requests pass uncounted", type(error).__name__)
            return None
        return refusal
