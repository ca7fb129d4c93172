"""The endpoint's own application with a model that answers at once: on Ray Serve, and by itself.

``python -m benchmarks.serve_empty PORT`` is the latter: the same routes and checks in one plain uvicorn process.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import uvicorn
from ray import serve as ray_serve
from starlette.types import ASGIApp

import serve  # before Ray, for whose environment it sets defaults
from serve.app import INGRESS_CPUS, Ingress, StethoLM
from serve.deploy import shutdown, wait_ready
from serve.http import create_app
from serve.keys import ApiKeys
from serve.metrics import ModelMetrics
from serve.service import Served, Service
from stetholm.ray_session import ray_session
from stetholm.serving.analysis import Evidence
from stetholm.serving.engine import Completion, Delta, Request, collect
from stetholm.serving.identity import ModelCard
from stetholm.settings import AudioSettings, ServeSettings
from stetholm.training.ranks import free_port

assert serve
CARD = ModelCard(id="stetholm/bench/empty", checkpoint="none")
CLIENTS = 32


class EmptyBackend:
    """A word a token, at once. See :class:`serve.backend.Backend`."""

    async def complete(self, request: Request) -> list[Completion]:
        """All of them."""
        return collect([delta async for delta in self.stream(request)], 1)

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """One by one, as a model's tokens."""
        last = request.sampling.max_new_tokens
        for number in range(1, last + 1):
            yield Delta(0, "word ", "length" if number == last else None, 8, number)

    async def explain(self, request: Request, answer: str, seconds: Sequence[float]) -> list[Evidence]:
        """Nothing."""
        return []

    async def ready(self) -> None:
        """At once."""


class EmptyReplica(StethoLM.func_or_class):  # type: ignore[name-defined]  # Serve's decorator hides the class
    """The model replica with an :class:`EmptyBackend` for its engine."""

    def __init__(self) -> None:
        self._backend = EmptyBackend()
        self._metrics = ModelMetrics()
        self._last_answer = time.monotonic()
        self._active = self._deltas = 0


@contextlib.contextmanager
def on_serve() -> Iterator[tuple[str, Any]]:
    """On Ray Serve, as :func:`serve.deploy.deploy` puts the endpoint up: its URL, and the replica's bare handle."""
    port = free_port()
    deployed = ray_serve.deployment(name="Empty", max_ongoing_requests=2 * CLIENTS)(EmptyReplica)
    ingress = Ingress.options(ray_actor_options={"num_cpus": INGRESS_CPUS}).bind(  # type: ignore[attr-defined]
        deployed.bind(), CARD, ServeSettings(), AudioSettings(), ApiKeys(), None
    )
    with ray_session():
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
        ray_serve.run(ingress, name="empty", route_prefix="/")
        url = f"http://127.0.0.1:{port}"
        wait_ready(url)
        try:
            yield url, ray_serve.get_deployment_handle("Empty", "empty")
        finally:
            shutdown()


def plain_app() -> ASGIApp:
    """Without Serve."""
    settings = ServeSettings()
    service = Service([Served(CARD, EmptyBackend())], settings, AudioSettings())
    return create_app(service, settings, ApiKeys())


if __name__ == "__main__":
    uvicorn.run(plain_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
