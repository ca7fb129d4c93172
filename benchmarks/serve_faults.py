"""``serve/faults``: requests that fail while the model is changed, replicas come and go, or one is killed.

The model is tiny and random: what is measured is who loses requests, not how fast they are answered.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ray import serve as ray_serve

import serve  # before Ray, for whose environment it sets defaults
from benchmarks.report import Result
from benchmarks.serve_siege import TOKENS, Siege, besieged
from serve import deploy
from serve.versions import DEPLOYMENT
from stetholm.ray_session import ray_session
from stetholm.settings import Settings, load_settings
from stetholm.storage import Storage, open_storage
from stetholm.training.ranks import free_port

assert serve
REQUESTS = 1000
CLIENTS = 16
LONG = 48
"""Tokens of an answer where a model replica is killed, so that many streams are in their middle."""
BEFORE, AFTER = 200, 200
"""Requests before a fault, and after it is over."""
NONE_FAILS = "every request is answered, to its end, at the first time it is asked"
Fault = Callable[[Siege, "Endpoint"], None]


class Endpoint:
    """An endpoint that things are done to."""

    def __init__(self, settings: Settings, models: tuple[str, str], storage: Storage) -> None:
        """``models``: URIs of two checkpoints, of which the first is served first."""
        self.settings, self.models, self.storage = settings, models, storage
        self.url = deploy.base_url(settings.serve)

    def deploy(self, **changed: object) -> None:
        """Put it up, or change it; returns when the change is done."""
        self.settings = self.settings.model_copy(update={"serve": self.settings.serve.model_copy(update=changed)})
        deploy.deploy(self.settings, self.storage)

    def replicas(self) -> int:
        """Of the default model, that take requests."""
        states = ray_serve.status().applications[deploy.APP_NAME].deployments[DEPLOYMENT].replica_states
        return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")

    def processes(self, deployment: str) -> list[psutil.Process]:
        """Of a deployment's replicas, on this process's own Ray."""
        title = f"ray::ServeReplica:{deploy.APP_NAME}:{deployment}"
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it has just ended
                words = process.cmdline()
                if words and (words[0] == title or words[0].startswith(f"{title}.")):
                    found.append(process)
        return found


@contextmanager
def endpoint(models: tuple[str, str], storage: Storage, *more: str) -> Iterator[Endpoint]:
    """The first of ``models`` on a free port of the Ray that this process is connected to."""
    fixed = [f"serve.port={free_port()}", f"serve.model={models[0]}", "serve.gate=if-there"]
    fixed += ["serve.max_queued_requests=1000", "serve.cpus_per_replica=0.5", "serve.engine=transformers"]
    made = Endpoint(load_settings(None, [*fixed, *more], {}), models, storage)
    made.deploy()
    try:
        yield made
    finally:
        deploy.shutdown()


def under(
    fault: Fault, where: Endpoint, requests: int = REQUESTS, clients: int = CLIENTS, tokens: int = TOKENS
) -> Siege:
    """Ask at least ``requests`` times: before, while and after ``fault`` is done. Answers have ``tokens``."""
    with besieged(where.url, clients, tokens) as siege:
        siege.wait_for(min(BEFORE, requests // 4))
        fault(siege, where)
        siege.wait_for(max(min(AFTER, requests // 4), requests - len(siege.outcomes)))
    return siege


def change(siege: Siege, where: Endpoint) -> None:
    """Serve the other model."""
    where.deploy(model=next(one for one in where.models if one != where.settings.serve.model))


def kill(deployment: str) -> Fault:
    """SIGKILL a replica of ``deployment``, and wait until another one is in its place."""

    def once(siege: Siege, where: Endpoint) -> None:
        before = {process.pid for process in where.processes(deployment)}
        os.kill(min(before), signal.SIGKILL)
        siege.wait_until(lambda: len({one.pid for one in where.processes(deployment)} - {min(before)}) >= len(before))

    return once


def scale(siege: Siege, where: Endpoint) -> None:
    """One replica, two while many ask, one again when few do."""
    siege.wait_until(lambda: where.replicas() == 2)
    siege.clients = 1
    siege.wait_until(lambda: where.replicas() == 1)
    siege.clients = CLIENTS // 4


def faults() -> Iterator[Result]:
    """Each fault, with a load of its own."""
    storage = open_storage(load_settings(None, [], {}).storage)
    models = (random_checkpoint(storage, "first", 0), random_checkpoint(storage, "second", 1))
    fixed, elastic = ["serve.min_replicas=2", "serve.max_replicas=2"], ["serve.min_replicas=1", "serve.max_replicas=2"]
    elastic += ["serve.target_ongoing_requests=1", "serve.upscale_delay_s=0", "serve.downscale_delay_s=1"]
    with ray_session(num_cpus=6):
        with endpoint(models, storage, *fixed) as where:
            yield told("serve.model is changed", under(change, where))
            yield told("a model replica of two is killed", under(kill(DEPLOYMENT), where, tokens=LONG))
            yield told("an HTTP ingress replica of two is killed", under(kill("Ingress"), where))
        with endpoint(models, storage, *elastic) as where:
            yield told("replicas scale 1, 2, 1", under(scale, where))


def told(what: str, siege: Siege) -> Result:
    """The share that was answered; whole answers and streams apart in the config."""
    asked = len(siege.outcomes)
    streams = [one for one in siege.outcomes if one.streamed]
    config = {
        "fault": what,
        "requests": asked,
        "failed": len(siege.failed()),
        "streamed": len(streams),
        "streamed_failed": len(siege.failed(streamed=True)),
        "faults": sorted({one.fault for one in siege.failed()})[:5],
        "longest_s": siege.longest_s(),
        "answers_by_model": dict(siege.models()),
        "clients": CLIENTS,
        "tokens": siege.tokens,
    }
    return Result("serve/faults", 1 - len(siege.failed()) / asked, 1.0, "share of requests", NONE_FAILS, config)


def random_checkpoint(storage: Storage, run: str, seed: int) -> str:
    """URI of a checkpoint of a tiny model with random weights."""
    from tests.serving.tiny import save_tiny

    uri = storage.join("runs", run, "sft", "checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        save_tiny(Path(folder), seed)
        storage.upload_dir(Path(folder), uri)
    return uri
