"""The Ray Serve application: HTTP ingress replicas in front of autoscaled model replicas.

``serve run serve.app:build_app config=cluster.yaml set="serve.model=s3://…"`` from the repository's root, or
:mod:`serve.deploy`, which also checks and waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
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
from serve.limits import Meter, SharedLimiter
from serve.metrics import HttpMetrics, ModelMetrics, RequestWatch
from serve.service import Served, Service
from stetholm import runs
from stetholm.evaluation.signoff import require_signed_off
from stetholm.serving.analysis import Evidence
from stetholm.serving.engine import Completion, Delta, Request, collect
from stetholm.serving.identity import ModelCard, read_card
from stetholm.settings import AudioSettings, EngineKind, EngineSettings, ServeSettings, Settings, load_settings
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

    def __init__(
        self,
        checkpoint: str,
        storage: Storage,
        max_batch: int,
        engine: EngineKind = "auto",
        limits: EngineSettings | None = None,
    ) -> None:
        """Load the checkpoint and answer a first question."""
        # Here, because the ingress replicas import this module and need no torch.
        from stetholm.serving.evidence import explainer_of
        from stetholm.serving.load import load_engine

        self._engine = load_engine(checkpoint, storage, engine, max_batch=max_batch, settings=limits)
        self._engine.generate_many([PROBE])
        self._backend = EngineBackend(self._engine, explainer_of(self._engine, checkpoint, storage))
        self._metrics = ModelMetrics()
        self._last_answer = time.monotonic()
        self._active = self._deltas = 0

    async def stream(self, request: Request, since: float | None = None) -> AsyncGenerator[Delta, None]:
        """Deltas of one request, which came in at ``since`` (Unix seconds)."""
        self._active += 1
        try:
            with RequestWatch(self._metrics, since) as watch:
                async with aclosing(self._backend.stream(request)) as deltas:
                    async for delta in deltas:
                        self._last_answer = time.monotonic()
                        self._deltas += 1
                        watch.saw(delta)
                        yield delta
        finally:
            self._active -= 1

    async def complete(self, request: Request, since: float | None = None) -> list[Completion]:
        """The answers of one request, which came in at ``since`` (Unix seconds)."""
        async with aclosing(self.stream(request, since)) as deltas:
            return collect([delta async for delta in deltas], request.sampling.n)

    async def explain(self, request: Request, answer: str, seconds: Sequence[float]) -> list[Evidence]:
        """What an answer rests on, in each recording."""
        return await self._backend.explain(request, answer, seconds)

    async def stats(self) -> dict[str, int]:
        """Requests being answered here (``active``), and pieces of text sent so far (``deltas``)."""
        return {"active": self._active, "deltas": self._deltas}

    async def ready(self) -> None:
        """Return when the model has answered lately, or answers now."""
        if time.monotonic() - self._last_answer > HEALTH_PERIOD_S:
            await self._backend.complete(PROBE)  # not a client's: it stays out of the metrics
            self._last_answer = time.monotonic()

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
        self,
        model: DeploymentHandle,
        card: ModelCard,
        settings: ServeSettings,
        audio: AudioSettings,
        keys: ApiKeys,
        meter: DeploymentHandle | None,
    ) -> None:
        """``model`` answers as ``card``; ``meter`` counts, where keys have limits."""
        log_with_serve()
        self._settings, self._keys = settings, keys
        self._limiter = SharedLimiter(meter) if meter else None
        self._metrics = HttpMetrics()
        self._service = Service([Served(card, ReplicaBackend(model))], settings, audio, self._metrics)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve in the replica, after the constructor."""
        return create_app(self._service, self._settings, self._keys, self._limiter, self._metrics)


def log_with_serve() -> None:
    """Let what we log, the access log above all, stand in the replica's own log file, in Serve's format."""
    ours = logging.getLogger("stetholm.serve")
    ours.handlers = list(logging.getLogger("ray.serve").handlers)
    ours.setLevel(logging.INFO)
    ours.propagate = False


def build(settings: Settings, storage: Storage) -> Application:
    """The application for ``serve.model``, or for the run's last checkpoint.

    Raises:
        UserError: there is no such checkpoint, it has not passed its gate, or the key file is bad.
    """
    chosen = settings.serve.model or runs.require_checkpoint(settings, storage)
    card = read_card(chosen, storage)
    require_signed_off(card.checkpoint, storage, settings.serve.gate)
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
    ).bind(card.checkpoint, storage, in_flight, options.engine, settings.engine)
    ingress = Ingress.options(ray_actor_options={"num_cpus": INGRESS_CPUS})  # type: ignore[attr-defined]
    keys = load_keys(options.api_keys_file, options.key_limits)
    meter = Meter.bind() if keys.limited else None  # type: ignore[attr-defined]
    application: Application = ingress.bind(model, card, options, settings.audio, keys, meter)
    return application


def build_app(args: dict[str, Any]) -> Application:
    """For ``serve run`` and deploy configs: ``args`` may hold ``config`` (a file) and ``set`` (a list of key=value)."""
    chosen = args.get("set", [])
    overrides = chosen.split() if isinstance(chosen, str) else list(chosen)
    settings = load_settings(Path(args["config"]) if "config" in args else None, overrides)
    return build(settings, open_storage(settings.storage))
