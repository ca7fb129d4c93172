"""Replicas that die in the middle of answers: who ends them, and when nobody does."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from serve import backend as backend_module
from serve.backend import ATTEMPTS, EngineBackend, ReplicaBackend, Told
from serve.errors import ApiError
from stetholm.serving.engine import Completion, Delta, Request, Sampling, collect
from stetholm.serving.identity import ModelCard
from stetholm.serving.transformers_engine import TransformersEngine
from tests.serve.conftest import CARD

OTHER = ModelCard(id="stetholm/other/dpo", checkpoint="s3://b/runs/other/dpo/checkpoint")
SEEDED = Request("Normal?", sampling=Sampling(max_new_tokens=20, temperature=0.9, seed=3, n=2))
WHOLE = None
"""A replica that does not die."""


class Response:
    """As Serve's of a streaming call."""

    def __init__(self, deltas: AsyncGenerator[Any, None]) -> None:
        self._deltas = deltas

    def __aiter__(self) -> AsyncGenerator[Any, None]:
        return self._deltas

    async def __anext__(self) -> Any:
        return await anext(self._deltas)

    def cancel(self) -> None:
        return None


class Replicas:
    """A handle whose calls meet one replica after the other; each is a checkpoint and what becomes of it.

    An int: it dies after so many pieces. An exception: it is raised at once.
    """

    def __init__(self, engine: TransformersEngine, *met: tuple[ModelCard, int | Exception | None]) -> None:
        self._engine, self._met = engine, list(met)
        self.asked: list[Request] = []

    def options(self, **_: Any) -> "Replicas":
        return self

    def remote(self, request: Request, since: float | None, only: str | None) -> Response:
        self.asked.append(request)
        card, fate = self._met[min(len(self.asked), len(self._met)) - 1]
        return Response(self._answer(request, card, fate, only))

    async def _answer(
        self, request: Request, card: ModelCard, fate: int | Exception | None, only: str | None
    ) -> AsyncGenerator[Told | Delta, None]:
        if isinstance(fate, Exception):
            raise fate
        if only not in (None, card.checkpoint):
            return
        yield Told(card)
        async with aclosing(EngineBackend(self._engine).stream(request)) as deltas:
            async for delta in deltas:
                if fate is not None and not fate:
                    raise ActorDiedError
                fate = None if fate is None else fate - 1
                yield delta


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "_PAUSES", (0.0,) * 6)
    monkeypatch.setattr(backend_module, "RETRY_S", 0.0)


async def read(replicas: Replicas, request: Request = SEEDED) -> tuple[list[Delta], ReplicaBackend, Exception | None]:
    """What a reader gets, and how it ended."""
    asking = ReplicaBackend(replicas).for_request()  # type: ignore[arg-type]
    got: list[Delta] = []
    try:
        async with aclosing(asking.stream(request)) as deltas:
            async for delta in deltas:
                got.append(delta)
    except Exception as error:
        return got, asking, error
    return got, asking, None


def whole(engine: TransformersEngine, request: Request = SEEDED) -> Sequence[Completion]:
    return engine.generate_many([request])[0]


@pytest.mark.parametrize("deaths", [(0,), (1,), (7,), (3, 5), (0, 0, 9)])
async def test_an_answer_is_ended_by_another_replica(engine, deaths):
    replicas = Replicas(engine, *((CARD, after) for after in deaths), (CARD, WHOLE))
    got, asking, error = await read(replicas)
    assert error is None and collect(got, 2) == whole(engine)
    assert len(replicas.asked) == len(deaths) + 1 and asking.told == CARD
    assert sum(len(delta.tokens) for delta in got) == sum(one.completion_tokens for one in whole(engine))


async def test_what_was_not_begun_any_model_may_answer_and_what_was_only_its_own(engine):
    got, asking, error = await read(Replicas(engine, (CARD, 0), (OTHER, WHOLE)))
    assert error is None and asking.told == OTHER and collect(got, 2) == whole(engine)
    got, asking, error = await read(Replicas(engine, (CARD, 4), (OTHER, WHOLE), (OTHER, WHOLE), (CARD, WHOLE)))
    assert error is None and asking.told == CARD and collect(got, 2) == whole(engine)


async def test_an_answer_whose_model_has_gone_is_an_error(engine):
    got, _, error = await read(Replicas(engine, (CARD, 4), (OTHER, WHOLE)))
    assert isinstance(error, ApiError) and error.code == "model_changing" and len(got) == 4


async def test_a_request_that_kills_replicas_is_given_up(engine):
    replicas = Replicas(engine, (CARD, 1))
    got, _, error = await read(replicas)
    assert isinstance(error, ApiError) and error.code == "unavailable"
    assert len(replicas.asked) == len(got) == ATTEMPTS


async def test_a_full_queue_refuses_new_requests_and_delays_begun_ones(engine):
    full = BackPressureError(num_queued_requests=1, max_queued_requests=1)
    got, _, error = await read(Replicas(engine, (CARD, full), (CARD, WHOLE)))
    assert isinstance(error, ApiError) and error.code == "overloaded" and not got
    got, _, error = await read(Replicas(engine, (CARD, 2), (CARD, full), (CARD, WHOLE)))
    assert error is None and collect(got, 2) == whole(engine)


async def test_without_a_seed_the_same_one_is_asked_everywhere(engine):
    unseeded = Request("Normal?", sampling=Sampling(max_new_tokens=12, temperature=1.0))
    replicas = Replicas(engine, (CARD, 3), (CARD, WHOLE))
    got, _, error = await read(replicas, unseeded)
    assert error is None
    [seed] = {request.sampling.seed for request in replicas.asked}
    seeded = Request("Normal?", sampling=Sampling(max_new_tokens=12, temperature=1.0, seed=seed))
    assert seed is not None and collect(got, 1) == whole(engine, seeded)


async def test_what_tells_no_tokens_is_not_taken_up(engine):
    class Mute(Replicas):
        """Whose deltas tell no tokens."""

        async def _answer(self, *_: Any) -> AsyncGenerator[Told | Delta, None]:
            yield Told(CARD)
            yield Delta(0, "word ", None, 8, 1)
            raise ActorDiedError

    replicas = Mute(engine, (CARD, WHOLE))
    got, _, error = await read(replicas)
    assert isinstance(error, ApiError) and error.code == "unavailable" and len(replicas.asked) == len(got) == 1


async def test_who_no_longer_waits_for_a_whole_answer_says_so(engine):
    cancelled = []

    class Waiting:
        """A call that is never answered."""

        def __await__(self) -> Any:
            return asyncio.sleep(60).__await__()

        def cancel(self) -> None:
            cancelled.append(True)

    class Slow(Replicas):
        """Whose answers do not come."""

        def remote(self, *_: Any) -> Any:
            return Waiting()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await ReplicaBackend(Slow(engine)).complete(SEEDED)  # type: ignore[arg-type]
    assert cancelled == [True]
