"""The Ray Serve application: HTTP ingress replicas in front of autoscaled model replicas.

``serve run serve.app:build_app config=cluster.yaml set="serve.model=s3://…"`` from the repository's root, or
:mod:`serve.deploy`, which also checks and waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve.backend import PROBE, EngineBackend, ReplicaBackend
from serve.http import create_app
from serve.keys import ApiKeys, load_keys
from serve.service import Served, Service
from stetholm import runs
from stetholm.serving.engine import Completion, Delta, Request, collect
from stetholm.serving.identity import ModelCard, read_card
from stetholm.settings import AudioSettings, ServeSettings, Settings, load_settings
from stetholm.storage import Storage, open_storage

HEALTH_PERIOD_S = 10.0
HEALTH_TIMEOUT_S = 30.0
INGRESS_REPLICAS = 2
"""Two, because requests in flight are lost with a replica; each is light."""
INGRESS_CPUS = 0.1
INGRESS_CONCURRENCY = 512


@serve.deployment(name="StethoLM")
class StethoLM:
    """A model replica."""

    def __init__(self, checkpoint: str, storage: Storage, max_batch: int) -> None:
        """Load the checkpoint and answer a first question."""
        # Here, because the ingress replicas import this module and need no torch.
        from stetholm.serving.load import load_engine

        self._engine = load_engine(checkpoint, storage, max_batch=max_batch)
        self._engine.generate_many([PROBE])
        self._backend = EngineBackend(self._engine)
        self._last_answer = time.monotonic()
        self._active = self._deltas = 0

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Deltas of one request."""
        self._active += 1
        try:
            async with aclosing(self._backend.stream(request)) as deltas:
                async for delta in deltas:
                    self._last_answer = time.monotonic()
                    self._deltas += 1
                    yield delta
        finally:
            self._active -= 1

    async def complete(self, request: Request) -> list[Completion]:
        """The answers of one request."""
        async with aclosing(self.stream(request)) as deltas:
            return collect([delta async for delta in deltas], request.sampling.n)

    async def stats(self) -> dict[str, int]:
        """Requests being answered here (``active``), and pieces of text sent so far (``deltas``)."""
        return {"active": self._active, "deltas": self._deltas}

    async def ready(self) -> None:
        """Return when the model has answered lately, or answers now."""
        if time.monotonic() - self._last_answer > HEALTH_PERIOD_S:
            await self.complete(PROBE)

    async def check_health(self) -> None:
        """Serve's health check: fails unless the model gives a token within the time, to whomever."""
        before = self._last_answer
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S - 5):
                await self.ready()
        except TimeoutError as error:
            if self._last_answer == before:
                raise RuntimeError("the model gave no token within the time of a health check") from error

    def __del__(self) -> None:
        """Serve calls this when the replica is drained."""
        if hasattr(self, "_engine"):
            self._engine.close()


@serve.deployment(name="Ingress", num_replicas=INGRESS_REPLICAS, max_ongoing_requests=INGRESS_CONCURRENCY)
@serve.ingress()
class Ingress:
    """An HTTP replica: checks, decodes, asks a model replica, formats."""

    def __init__(
        self, model: DeploymentHandle, card: ModelCard, settings: ServeSettings, audio: AudioSettings, keys: ApiKeys
    ) -> None:
        """``model`` answers as ``card``."""
        self._settings, self._keys = settings, keys
        self._service = Service([Served(card, ReplicaBackend(model))], settings, audio)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve in the replica, after the constructor."""
        return create_app(self._service, self._settings, self._keys)


def build(settings: Settings, storage: Storage) -> Application:
    """The application for ``serve.model``, or for the run's last checkpoint.

    Raises:
        UserError: there is no such checkpoint, or the key file is bad.
    """
    chosen = settings.serve.model or runs.require_checkpoint(settings, storage)
    card = read_card(chosen, storage)
    options = settings.serve
    in_flight = 2 * options.target_ongoing_requests
    model = StethoLM.options(  # type: ignore[attr-defined]
        max_ongoing_requests=in_flight,
        max_queued_requests=options.max_queued_requests,
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": max(options.max_replicas, options.min_replicas),
            "target_ongoing_requests": options.target_ongoing_requests,
        },
        ray_actor_options={"num_cpus": options.cpus_per_replica, "num_gpus": options.gpus_per_replica},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        max_constructor_retry_count=2,
    ).bind(card.checkpoint, storage, in_flight)
    ingress = Ingress.options(ray_actor_options={"num_cpus": INGRESS_CPUS})  # type: ignore[attr-defined]
    application: Application = ingress.bind(model, card, options, settings.audio, load_keys(options.api_keys_file))
    return application


def build_app(args: dict[str, Any]) -> Application:
    """For ``serve run`` and deploy configs: ``args`` may hold ``config`` (a file) and ``set`` (a list of key=value)."""
    chosen = args.get("set", [])
    overrides = chosen.split() if isinstance(chosen, str) else list(chosen)
    settings = load_settings(Path(args["config"]) if "config" in args else None, overrides)
    return build(settings, open_storage(settings.storage))
