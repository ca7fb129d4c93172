"""An endpoint that is up already: where its Ray is, and whether there is room to change it without a gap."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray

from serve.app import INGRESS_CPUS
from stetholm.processes import Record
from stetholm.settings import ServeSettings, Settings
from stetholm.storage import home


def _path(port: int) -> Path:
    return home() / "endpoints" / f"{port}.json"


@contextmanager
def remembered(port: int) -> Iterator[None]:
    """While this process holds an endpoint on ``port``, the next deployment finds its Ray."""
    path, pid = _path(port), os.getpid()
    holder = Record(pid, psutil.Process(pid).create_time(), "serve")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{pid}.part")
    part.write_text(json.dumps({"address": _gcs_address(), "holder": holder.__dict__}))
    part.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def address_of(port: int) -> str | None:
    """Address of the Ray whose endpoint a process of ours holds on ``port``; None, if there is none."""
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):  # none, or half of one
        found = json.loads(_path(port).read_text())
        if Record(**found["holder"]).process() is not None:
            return str(found["address"])
    return None


def keep(settings: Settings) -> None:
    """Note what came up, for the case that a change of it does not."""
    told = settings.model_dump(mode="json", exclude={"storage"})
    _kept_at(settings).parent.mkdir(parents=True, exist_ok=True)
    _kept_at(settings).write_text(json.dumps({"address": _gcs_address(), "settings": told}))


def kept(settings: Settings) -> Settings | None:
    """What came up last at the same port of the same Ray, as far as this machine knows; the storage is that of now."""
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        found = json.loads(_kept_at(settings).read_text())
        if found["address"] == _gcs_address():
            return Settings.model_validate({**found["settings"], "storage": settings.storage})
    return None


def _kept_at(settings: Settings) -> Path:
    return home() / "endpoints" / f"{settings.serve.port}.settings.json"


def _gcs_address() -> str:
    return str(ray.get_runtime_context().gcs_address)


def show_token() -> None:
    """Join with Ray's token where this user has one: a Ray of one's own asks for it, an address alone shows none."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def tell_if_no_room(options: ServeSettings) -> None:
    """One line on stderr, if a replica more does not fit now: then the change waits, for ever if nothing is added."""
    if not options.surge_percent:
        return
    free = ray.available_resources()
    wanted = {"CPU": options.cpus_per_replica + INGRESS_CPUS, "GPU": options.gpus_per_replica}
    if short := [name for name, much in wanted.items() if much > free.get(name, 0.0)]:
        print(
            f"serve: no room now for one more replica ({', '.join(short)}): the old ones go on until there is; "
            "serve.surge_percent=0 changes them in their place, with a gap",
            file=sys.stderr,
            flush=True,
        )
