"""The Ray Serve application: HTTP ingress replicas in front of autoscaled model replicas.

``serve run serve.app:build_app config=cluster.yaml set="serve.model=s3://…"`` from the repository's root, or
:mod:`serve.deploy`, which also checks and waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve.backend import PROBE, EngineBackend, ReplicaBackend, Told
from serve.canary import Canary
from serve.errors import RETRY_AFTER_S
from serve.http import create_app
from serve.keys import ApiKeys, load_keys
from serve.limits import Meter, SharedLimiter
from serve.metrics import HttpMetrics, ModelMetrics, RequestWatch
from serve.quiet import quiet
from serve.service import Served, Service
from serve.versions import DEPLOYMENT, Version, versions_of
from stetholm.cluster.serve_config import SLACK_S
from stetholm.roles import nodes_of
from stetholm.serving.analysis import Evidence
from stetholm.serving.engine import Delta, EngineDead, Request, collect
from stetholm.serving.identity import ALIAS, ModelCard
from stetholm.settings import AudioSettings, EngineKind, EngineSettings, ServeSettings, Settings, load_settings
from stetholm.storage import Storage, open_storage

HEALTH_PERIOD_S = 10.0
HEALTH_TIMEOUT_S = 30.0
INGRESS_REPLICAS = 2
"""Two, because requests in flight are lost with a replica; each is light."""
INGRESS_CPUS = 0.1
INGRESS_CONCURRENCY = 512
INGRESS_QUEUE = 256
"""In each proxy, when all ingress replicas have as much as they take; beyond: 503 with Retry-After."""
DRAIN_LOOP_S = 1.0
"""How often a replica that leaves looks whether it has given its last answer."""


@contextmanager
def ending_with_the_engine() -> Iterator[None]:
    """End this process where its engine is dead. So Serve starts another, and requests go to those that answer."""
    try:
        yield
    except EngineDead as error:
        logging.getLogger("ray.serve").error("the engine is dead (%s): so ends this replica", error)
        os._exit(1)


@serve.deployment(name=DEPLOYMENT)
class StethoLM:
    """A model replica."""

    _card: ModelCard | None = None

    def __init__(
        self,
        card: ModelCard,
        storage: Storage,
        max_batch: int,
        engine: EngineKind = "auto",
        limits: EngineSettings | None = None,
    ) -> None:
        """Load the checkpoint and answer a first question."""
        # Here, because the ingress replicas import this module and need no torch.
        from stetholm.serving.evidence import explainer_of
        from stetholm.serving.load import load_engine

        checkpoint, self._card = card.checkpoint, card
        self._engine = load_engine(checkpoint, storage, engine, max_batch=max_batch, settings=limits)
        self._engine.generate_many([PROBE])
        self._backend = EngineBackend(self._engine, explainer_of(self._engine, checkpoint, storage))
        self._metrics = ModelMetrics()
        self._last_answer = time.monotonic()
        self._active = self._deltas = 0

    def _is(self, only: str | None) -> bool:
        return only is None or (self._card is not None and self._card.checkpoint == only)

    @quiet
    async def stream(
        self, request: Request, since: float | None = None, only: str | None = None
    ) -> AsyncGenerator[Told | Delta, None]:
        """Who this is, then deltas of one request; nothing, if ``only`` is not this model's checkpoint.

        ``since``: when the request came in (Unix seconds).
        """
        if not self._is(only):
            return
        yield Told(self._card)
        async with aclosing(self._deltas_of(request, since)) as deltas:
            async for delta in deltas:
                yield delta

    @quiet
    async def complete(self, request: Request, since: float | None = None, only: str | None = None) -> Told:
        """Who this is, and the answers of one request; see :meth:`stream`."""
        if not self._is(only):
            return Told(self._card)
        async with aclosing(self._deltas_of(request, since)) as deltas:
            return Told(self._card, collect([delta async for delta in deltas], request.sampling.n))

    async def _deltas_of(self, request: Request, since: float | None) -> AsyncGenerator[Delta, None]:
        self._active += 1
        try:
            with ending_with_the_engine(), RequestWatch(self._metrics, since, request.begun) as watch:
                async with aclosing(self._backend.stream(request)) as deltas:
                    async for delta in deltas:
                        self._last_answer = time.monotonic()
                        self._deltas += 1
                        watch.saw(delta)
                        yield delta
        finally:
            self._active -= 1

    @quiet
    async def explain(
        self, request: Request, answer: str, seconds: Sequence[float], by: str | None = None
    ) -> list[Evidence] | None:
        """What an answer of the checkpoint ``by`` rests on, in each recording; None, if this is another one."""
        if not self._is(by):
            return None
        self._active += 1
        try:
            return await self._backend.explain(request, answer, seconds)
        finally:
            self._active -= 1

    async def stats(self) -> dict[str, int]:
        """Requests being answered or explained here (``active``), and pieces of text sent so far (``deltas``)."""
        return {"active": self._active, "deltas": self._deltas}

    async def ready(self) -> None:
        """Return when the model has answered lately, or answers now."""
        if time.monotonic() - self._last_answer > HEALTH_PERIOD_S:
            with ending_with_the_engine():
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


@dataclass(frozen=True)
class Other:
    """A version beside the default model, as the ingress gets it."""

    name: str
    card: ModelCard
    model: Any
    """Its application before, its handle within Serve."""
    sleeps: bool


@serve.deployment(
    name="Ingress",
    num_replicas=INGRESS_REPLICAS,
    max_ongoing_requests=INGRESS_CONCURRENCY,
    max_queued_requests=INGRESS_QUEUE,
    backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
)
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
        others: Sequence[Other] = (),
    ) -> None:
        """``model`` answers as ``card``; ``meter`` counts, where keys have limits; ``others`` have names."""
        log_with_serve()
        self._settings, self._keys = settings, keys
        self._limiter = SharedLimiter(meter) if meter else None
        self._metrics = HttpMetrics()
        backends = {ALIAS: ReplicaBackend(model, settings.min_replicas == 0)}
        backends |= {other.name: ReplicaBackend(other.model, other.sleeps) for other in others}
        cards = {ALIAS: card} | {other.name: other.card for other in others}
        served = [Served(cards[name], backend, name) for name, backend in backends.items()]
        canary = None
        if settings.canary and settings.canary_share:
            canary = Canary(backends[settings.canary], settings.canary_share, settings.canary_by)
        self._service = Service(served, settings, audio, self._metrics, canary)

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
    """The application for ``serve.model``, or for the run's last checkpoint, and ``serve.versions``.

    Raises:
        UserError: a checkpoint is not there or has not passed its gate, or the key file is bad.
    """
    default, *others = versions_of(settings, storage)
    options = settings.serve
    keys = load_keys(options.api_keys_file, options.key_limits)
    meter = None
    if keys.limited:
        meter = Meter.options(ray_actor_options=_actor(options, num_cpus=0), **_leaving(options)).bind()  # type: ignore[attr-defined]
    ingress = Ingress.options(  # type: ignore[attr-defined]
        ray_actor_options=_actor(options, num_cpus=INGRESS_CPUS), **{**_leaving(options), "max_surge_percent": 100}
    )
    beside = [Other(str(one.name), one.card, _replicas(one, settings, storage), one.sleeps) for one in others]
    application: Application = ingress.bind(
        _replicas(default, settings, storage), default.card, options, settings.audio, keys, meter, beside
    )
    return application


def _replicas(version: Version, settings: Settings, storage: Storage) -> Application:
    """The model replicas of a version."""
    options = settings.serve
    in_flight = 2 * options.target_ongoing_requests
    deployment = StethoLM.options(  # type: ignore[attr-defined]
        name=version.deployment,
        max_ongoing_requests=in_flight,
        max_queued_requests=options.max_queued_requests,
        autoscaling_config=version.autoscaling(options),
        ray_actor_options=_actor(options, num_cpus=options.cpus_per_replica, num_gpus=options.gpus_per_replica),
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        max_constructor_retry_count=2,
        **_leaving(options),
    )
    replicas: Application = deployment.bind(version.card, storage, in_flight, options.engine, settings.engine)
    return replicas


def _actor(options: ServeSettings, **resources: float) -> dict[str, Any]:
    """What a replica asks for, and of which nodes."""
    nodes = nodes_of("server", options.label_selector)
    return resources | ({"label_selector": nodes} if nodes else {})


def _leaving(options: ServeSettings) -> dict[str, Any]:
    """How replicas give way to others: those come first, and what was begun is ended."""
    return {
        "max_surge_percent": options.surge_percent,
        "graceful_shutdown_wait_loop_s": DRAIN_LOOP_S,
        "graceful_shutdown_timeout_s": options.request_timeout_s + SLACK_S,
    }


def build_app(args: dict[str, Any]) -> Application:
    """For ``serve run`` and deploy configs: ``args`` may hold ``config`` (a file) and ``set`` (a list of key=value)."""
    chosen = args.get("set", [])
    overrides = chosen.split() if isinstance(chosen, str) else list(chosen)
    settings = load_settings(Path(args["config"]) if "config" in args else None, overrides)
    return build(settings, open_storage(settings.storage))
