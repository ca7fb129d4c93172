"""``serve/haproxy``: requests that fail when an HTTP ingress replica is killed, behind Serve's own proxy and HAProxy.

As :mod:`benchmarks.serve_faults`, whose load it is: 16 clients, half of them streaming, that never ask twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.report import Result
from benchmarks.serve_faults import endpoint, kill, random_checkpoint, told, under
from serve import haproxy
from stetholm.ray_session import ray_session
from stetholm.settings import ServeSettings, load_settings
from stetholm.storage import open_storage

FIXED = ("serve.min_replicas=2", "serve.max_replicas=2")


def compared() -> Iterator[Result]:
    """Serve's own proxy, then HAProxy, each with a Ray of its own."""
    storage = open_storage(load_settings(None, [], {}).storage)
    models = (random_checkpoint(storage, "first", 0), random_checkpoint(storage, "second", 1))
    for chosen in (False, True):
        options, what = ServeSettings(haproxy=chosen), "HAProxy" if chosen else "Serve's proxy"
        with (
            haproxy.asked_for(options),
            ray_session(num_cpus=6),
            endpoint(models, storage, *FIXED, f"serve.haproxy={str(chosen).lower()}") as where,
        ):
            siege = under(kill("Ingress"), where)
            result = told(f"an HTTP ingress replica of two is killed, behind {what}", siege)
            yield replace(result, bench="serve/haproxy")
