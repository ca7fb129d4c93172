"""How the HTTP layer reaches a model: an engine in this process, or replicas behind a Serve handle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve.errors import overloaded
from serve.metrics import arrived
from stetholm.serving.analysis import Evidence
from stetholm.serving.engine import Completion, Delta, Engine, Request, Sampling, collect

if TYPE_CHECKING:
    from stetholm.serving.evidence import Explainer

PROBE = Request("Is this heart sound normal or abnormal?", sampling=Sampling(max_new_tokens=1))
"""The smallest question that proves that a model answers."""


class Backend(Protocol):
    """Answers requests. Raises RequestError, or ApiError 503 when it cannot take more."""

    async def complete(self, request: Request) -> list[Completion]:
        """All answers at once."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Answers as they come; closing the iterator cancels."""
        ...

    async def explain(self, request: Request, answer: str, seconds: Sequence[float]) -> list[Evidence]:
        """What ``answer`` rests on, in each recording; ``seconds`` of each are sound."""
        ...

    async def ready(self) -> None:
        """Return when the model answers."""
        ...


class EngineBackend:
    """An engine in this process; also the inside of a replica."""

    def __init__(self, engine: Engine, explainer: Explainer | None = None) -> None:
        """The engine stays the caller's to close. By default its own model explains."""
        # Here, because the ingress replicas import this module and need no torch.
        from stetholm.serving.evidence import explainer_of

        self._engine = engine
        self._explainer = explainer or explainer_of(engine)

    async def complete(self, request: Request) -> list[Completion]:
        """See :class:`Backend`."""
        async with aclosing(self.stream(request)) as deltas:
            return collect([delta async for delta in deltas], request.sampling.n)

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """See :class:`Backend`."""
        async with aclosing(self._engine.stream(request)) as deltas:
            async for delta in deltas:
                yield delta

    async def explain(self, request: Request, answer: str, seconds: Sequence[float]) -> list[Evidence]:
        """See :class:`Backend`."""
        return await asyncio.to_thread(self._explainer.explain, request, answer, seconds)

    async def ready(self) -> None:
        """See :class:`Backend`."""
        await self.complete(PROBE)


class ReplicaBackend:
    """Replicas behind a Serve handle.

    A request whose replica dies is asked once more, of another one, as long as nothing of its answer was passed on.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        """``handle`` of a deployment with the methods ``complete``, ``stream``, ``explain`` and ``ready``.

        The first two also take when the HTTP request came in.
        """
        self._complete = handle.options(method_name="complete")
        self._stream = handle.options(method_name="stream", stream=True)
        self._explain = handle.options(method_name="explain")
        self._ready = handle.options(method_name="ready")

    async def complete(self, request: Request) -> list[Completion]:
        """See :class:`Backend`."""
        answers: list[Completion] = await _twice(self._complete, request, arrived.get())
        return answers

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """See :class:`Backend`."""
        started = retried = False
        with _busy_as_503():
            while True:
                response: Any = self._stream.remote(request, arrived.get())
                try:
                    async for delta in response:
                        started = True
                        yield delta
                    return
                except RayActorError:
                    if started or retried:
                        raise
                    retried = True
                finally:
                    response.cancel()

    async def explain(self, request: Request, answer: str, seconds: Sequence[float]) -> list[Evidence]:
        """See :class:`Backend`."""
        found: list[Evidence] = await _twice(self._explain, request, answer, list(seconds))
        return found

    async def ready(self) -> None:
        """See :class:`Backend`."""
        with _busy_as_503():
            await self._ready.remote()


async def _twice(method: Any, *arguments: Any) -> Any:
    """Ask a replica, and another one if the first dies over it."""
    with _busy_as_503():
        try:
            return await method.remote(*arguments)
        except RayActorError:
            return await method.remote(*arguments)


@contextmanager
def _busy_as_503() -> Iterator[None]:
    try:
        yield
    except BackPressureError as error:
        raise overloaded("too many requests are waiting") from error
    except (RayActorError, DeploymentUnavailableError) as error:
        raise overloaded("the model's replica went away; ask again", code="unavailable") from error
