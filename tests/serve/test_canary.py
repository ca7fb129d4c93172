"""A canary that fails, in whatever way, is nobody's answer before its first word, and is counted as its own."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import httpx
import pytest
from ray.exceptions import RayTaskError

from serve.backend import EngineBackend, ReplicaBackend
from serve.canary import Canary
from serve.errors import overloaded
from serve.http import create_app
from serve.keys import ApiKeys
from serve.metrics import HttpMetrics
from serve.service import Served, Service
from stetholm.serving.engine import Completion, Delta, EngineBusy, Request
from stetholm.serving.identity import ModelCard
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.settings import AudioSettings, ServeSettings
from tests.serve.conftest import CARD

CANARY = ModelCard(id="stetholm/canary/dpo", checkpoint="s3://b/runs/canary/dpo/checkpoint")


class Here(ReplicaBackend):
    """As replicas behind a handle, but in this process; it fails with ``error`` after so many pieces."""

    def __init__(self, engine: TransformersEngine, card: ModelCard, error: Exception | None = None, after: int = 0):
        self._inner, self._card, self._error, self._after = EngineBackend(engine), card, error, after
        self.sleeps = False

    async def complete(self, request: Request) -> list[Completion]:
        self.told = self._card
        return await self._inner.complete(request)

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        self.told, left = self._card, self._after
        async with aclosing(self._inner.stream(request)) as deltas:
            async for delta in deltas:
                if self._error is not None and not left:
                    raise self._error
                left -= 1
                yield delta

    async def ready(self) -> None:
        return None


class Counts(HttpMetrics):
    """Which remember what they were told."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        for name in ("answers", "failures"):
            setattr(self, name, self._counter(name))

    def _counter(self, name: str) -> object:
        class Counter:
            def inc(_, value: float, tags: dict[str, str]) -> None:
                self.found.append((name, tags))

        return Counter()


@asynccontextmanager
async def beside(canary: Here, default: Here) -> AsyncIterator[tuple[httpx.AsyncClient, Counts]]:
    """A client of an endpoint whose canary takes every request."""
    counts = Counts()
    taking = Canary(canary, 1.0, "request")
    taking._up = True
    served = [Served(CARD, default), Served(CANARY, canary, "next")]
    settings = ServeSettings(max_new_tokens=8)
    app = create_app(Service(served, settings, AudioSettings(), counts, taking), settings, ApiKeys())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=60) as client:
        yield client, counts


async def ask(client: httpx.AsyncClient, stream: bool) -> httpx.Response:
    body = {"model": "stetholm", "messages": [{"role": "user", "content": "Normal?"}], "stream": stream}
    return await client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RayTaskError("stream", "", EngineBusy("full")), "overloaded"),
        (RayTaskError("stream", "", MemoryError("out of it")), "internal_error"),
        (overloaded("gone", code="unavailable"), "unavailable"),
    ],
)
async def test_the_default_model_answers_when_the_canary_fails(engine, stream, error, code):
    async with beside(Here(engine, CANARY, error), Here(engine, CARD)) as (client, counts):
        response = await ask(client, stream)
    assert response.status_code == 200
    assert CARD.id in response.text and CANARY.id not in response.text and '"error"' not in response.text
    assert counts.found == [
        ("failures", {"model": CANARY.id, "asked": "stetholm", "code": code}),
        ("answers", {"model": CARD.id, "asked": "stetholm"}),
    ]


async def test_a_canary_that_fails_after_its_first_word_is_an_error_and_counted(engine):
    failing = Here(engine, CANARY, RuntimeError("in the middle"), after=1)
    async with beside(failing, Here(engine, CARD)) as (client, counts):
        response = await ask(client, stream=True)
    assert CANARY.id in response.text and "internal_error" in response.text and "[DONE]" not in response.text
    assert counts.found == [("failures", {"model": CANARY.id, "asked": "stetholm", "code": "internal_error"})]


async def test_a_canary_that_answers_is_counted_as_itself(engine):
    async with beside(Here(engine, CANARY), Here(engine, CARD)) as (client, counts):
        assert (await ask(client, stream=False)).json()["model"] == CANARY.id
    assert counts.found == [("answers", {"model": CANARY.id, "asked": "stetholm"})]


async def test_what_the_client_did_wrong_is_nobodys_failure(engine):
    async with beside(Here(engine, CANARY), Here(engine, CARD)) as (client, counts):
        body = {"model": "stetholm", "messages": [{"role": "user", "content": "é" * 4000}]}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 400
    assert counts.found == []
