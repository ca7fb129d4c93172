"""How the HTTP layer reaches a model: an engine in this process, or replicas behind a Serve handle."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve.errors import ApiError, overloaded
from serve.metrics import arrived
from stetholm.serving.analysis import Evidence
from stetholm.serving.engine import Completion, Delta, Engine, Request, Sampling, collect
from stetholm.serving.identity import ModelCard
from stetholm.serving.progress import Progress

if TYPE_CHECKING:
    from stetholm.serving.evidence import Explainer

ATTEMPTS = 4
"""How often a request is asked whose replicas die over it."""
RETRY_S = 0.1
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Between attempts to meet a replica of the one model that was asked for."""
PROBE = Request("Is this heart sound normal or abnormal?", sampling=Sampling(max_new_tokens=1))
"""The smallest question that proves that a model answers."""


@dataclass(frozen=True)
class Told:
    """What a replica says before or with its answers: who it is. Without ``answers`` it is not the one wanted."""

    card: ModelCard | None
    answers: Sequence[Completion] | None = None


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
        gone = threading.Event()
        try:
            return await asyncio.to_thread(self._explainer.explain, request, answer, seconds, gone)
        finally:
            gone.set()

    async def ready(self) -> None:
        """See :class:`Backend`."""
        await self.complete(PROBE)


class ModelChanged(Exception):
    """The replicas that gave an answer have left, and others cannot say what it rests on."""


class ReplicaBackend:
    """Replicas behind a Serve handle.

    A request whose replica dies is asked again, of another one; where some of its answer was passed on, of one of the
    same model, which goes on from there. While a deployment is changed, replicas of two models stand behind one handle:
    each says which it is.
    """

    told: ModelCard | None = None
    """Who has answered the request that this is for."""
    patience_s: float | None = None
    """How long a stream waits for a replica to take it. None: as long as the request may take."""
    _only: str | None = None
    _met = False
    """Whether a replica of the model that was wanted has taken the request."""

    def __init__(self, handle: DeploymentHandle, sleeps: bool = False) -> None:
        """``handle`` of a deployment of :class:`serve.app.StethoLM`; ``sleeps``: it may have no replica."""
        self._complete = handle.options(method_name="complete")
        self._stream = handle.options(method_name="stream", stream=True)
        self._explain = handle.options(method_name="explain")
        self._ready = handle.options(method_name="ready")
        self.sleeps = sleeps

    def for_request(self, only: str | None = None) -> ReplicaBackend:
        """The same for one request, which remembers who answered. ``only``: the checkpoint that alone may."""
        mine = copy(self)
        mine._only = only
        return mine

    async def complete(self, request: Request) -> list[Completion]:
        """See :class:`Backend`."""
        for pause in _PAUSES:
            told = await _ask(self._complete, request, arrived.get(), self._only)
            if told.answers is not None:
                self.told = told.card
                return list(told.answers)
            await asyncio.sleep(pause)
        raise _changing()

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """See :class:`Backend`."""
        progress, deaths, pauses = Progress(request), 0, iter(_PAUSES)
        with _busy_as_503():
            while True:
                try:
                    async with aclosing(self._once(progress)) as deltas:
                        async for delta in deltas:
                            yield delta
                    if self._met:
                        return
                    pause = next(pauses, None)
                    if pause is None:
                        raise _changing()
                except RayActorError:
                    if progress.over:
                        return
                    deaths, pause = deaths + 1, RETRY_S
                    if deaths == ATTEMPTS or not progress.known:
                        raise
                except BackPressureError:
                    pause = next(pauses, None)
                    if pause is None or not progress.begun:
                        raise
                await asyncio.sleep(pause)

    async def _once(self, progress: Progress) -> AsyncGenerator[Delta, None]:
        """What one replica adds; nothing, if it is of another model than the only one that may."""
        only, self._met = self._only, False
        if progress.begun and self.told is not None:
            only = self.told.checkpoint
        patience_s = None if progress.begun else self.patience_s
        response: Any = self._stream.remote(progress.rest, arrived.get(), only)
        try:
            while (told := await self._next(response, patience_s)) is not None:
                if isinstance(told, Told):
                    self.told, self._met = told.card, True
                elif progress.news(told):
                    yield told
        finally:
            response.cancel()

    async def _next(self, response: Any, patience_s: float | None) -> Told | Delta | None:
        """What comes next; the first, by which a replica takes the request, within ``patience_s``."""
        try:
            async with asyncio.timeout(None if self._met else patience_s):
                return cast("Told | Delta | None", await anext(response, None))
        except TimeoutError as error:
            raise overloaded("no replica has taken the request", code="unavailable") from error

    async def explain(self, request: Request, answer: str, seconds: Sequence[float]) -> list[Evidence]:
        """See :class:`Backend`.

        Raises:
            ModelChanged: no replica of the model that gave the answer is left.
        """
        by = self.told.checkpoint if self.told else None
        for _ in range(ATTEMPTS):
            found: list[Evidence] | None = await _ask(self._explain, request, answer, list(seconds), by)
            if found is not None:
                return found
        raise ModelChanged

    async def ready(self) -> None:
        """See :class:`Backend`. One that may sleep is not asked: that would hold it awake."""
        if self.sleeps:
            return
        with _busy_as_503():
            await self._ready.remote()


async def _ask(method: Any, *arguments: Any) -> Any:
    """Ask a replica, and another one if it dies over it."""
    with _busy_as_503():
        for _ in range(ATTEMPTS - 1):
            try:
                return await _answer_of(method.remote(*arguments))
            except RayActorError:
                await asyncio.sleep(RETRY_S)
        return await _answer_of(method.remote(*arguments))


async def _answer_of(response: Any) -> Any:
    """What a replica answers; it is told when nobody waits for that any more."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def _changing() -> ApiError:
    return overloaded("this model is coming or going; ask again", code="model_changing")


@contextmanager
def _busy_as_503() -> Iterator[None]:
    try:
        yield
    except BackPressureError as error:
        raise overloaded("too many requests are waiting") from error
    except (RayActorError, DeploymentUnavailableError) as error:
        raise overloaded("the model's replica went away; ask again", code="unavailable") from error
