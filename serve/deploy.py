"""Put the endpoint up, or change it: ``python -m serve.deploy [--config cluster.yaml] --set serve.model=s3://…``.

The first one runs in the foreground until Ctrl-C or SIGTERM and then leaves nothing running. Meanwhile another one for
the same port (or on the same ``RAY_ADDRESS``) changes what is served, without a gap, and ends. A checkpoint that has
not passed its gate is refused, unless ``--force`` is given.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from ray import serve
from ray.serve import Application

from serve import haproxy, rollout
from serve.app import build
from serve.service import now
from serve.versions import versions_of
from stetholm.cluster.serve_config import APPLICATION as APP_NAME
from stetholm.cluster.serve_config import SLACK_S, require_keys
from stetholm.errors import UserError
from stetholm.job import run_job
from stetholm.ray_session import ray_session
from stetholm.settings import ServeSettings, Settings
from stetholm.storage import Storage

READY_TIMEOUT_S = 300.0


def base_url(settings: ServeSettings) -> str:
    """Where this machine reaches the endpoint."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    return f"http://{host}:{settings.port}"


def require_free_port(host: str, port: int) -> None:
    """Find out before anything starts.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"port {port} on {host} is in use: choose another with --set serve.port=…") from error
            raise UserError(f"cannot listen on serve.host {host}, port {port}: {error.strerror}") from error


def _require_ours(url: str) -> None:
    """Serve listens already on this Ray, and keeps its port until it is shut down: it must be the one wanted."""
    try:
        with urllib.request.urlopen(f"{url}/-/healthz", timeout=10):
            return
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"Ray Serve already runs on this Ray, but not at {url}: use its port, or shut it down"
        ) from error


def is_up() -> bool:
    """Whether an endpoint of ours runs on the Ray that this process is connected to."""
    return APP_NAME in serve.status().applications


def deploy(settings: Settings, storage: Storage, block: bool = False) -> str:
    """Start or update the endpoint on the Ray that this process is connected to; return its base URL once it answers.

    An update that fails leaves the old replicas serving, and puts their settings back where those are known. With
    ``block``, return only after Ctrl-C or SIGTERM, and take the endpoint down.

    Raises:
        UserError: no such checkpoint, a bad key file, a port in use, an address that others reach without a key, or the
            model does not come up.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    require_keys(settings.serve)
    application = build(settings, storage)
    options, url, update = settings.serve, base_url(settings.serve), is_up()
    if serve.status().proxies:
        _require_ours(url)
    else:
        require_free_port(options.host, options.port)
    if update:
        rollout.tell_if_no_room(options)
    try:
        _start(options)
        _run(application, url)
    except (RuntimeError, UserError) as error:
        if update:
            back = _put_back(settings, storage)
            raise UserError(f"the change did not come up, the old model answers{back}: {_last_line(error)}") from error
        shutdown()
        raise UserError(f"the endpoint did not come up: {_last_line(error)}") from error
    haproxy.tell_if_absent(options)
    rollout.keep(settings)
    if block:
        with rollout.remembered(options.port):
            _hold(url)
        shutdown()
    return url


def _run(application: Application, url: str) -> None:
    serve.run(application, name=APP_NAME, route_prefix="/")
    wait_ready(url)


def _put_back(settings: Settings, storage: Storage) -> str:
    """Deploy again what came up last; how that went, as a part of a sentence."""
    before = rollout.kept(settings)
    if before is None:
        return ", whose settings are not known here: deploy them again"
    try:
        _run(build(before, storage), base_url(settings.serve))
    except (RuntimeError, UserError) as error:
        return f", but its settings could not be put back ({_last_line(error)}): deploy them again"
    return " with its settings"


def _start(options: ServeSettings) -> None:
    """Serve itself, unless it runs."""
    timeout_s = options.request_timeout_s + SLACK_S
    serve.start(http_options={"host": options.host, "port": options.port, "request_timeout_s": timeout_s})


def shutdown() -> None:
    """Take the endpoint down: all of Serve on this Ray."""
    serve.shutdown()


def wait_ready(url: str, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Return when ``/readyz`` says so.

    Raises:
        UserError: it does not within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=30):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise UserError(f"{url} is not ready after {timeout_s:g} s: {error}") from error
        time.sleep(0.2)


def _last_line(error: Exception) -> str:
    """What matters of a Serve failure, which holds the replica's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _hold(url: str) -> None:
    """Tell how to ask, then wait for the end."""
    body = {"model": "stetholm", "messages": [{"role": "user", "content": "What does a wheeze sound like?"}]}
    print(f"\nThe endpoint is up: {url}   (the page; Ctrl-C ends it)")
    print(f"  curl {url}/v1/analyze -F audio=@recording.wav -F task=Classification")
    print(f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'\n", flush=True)
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # In slices, because a wait without a timeout keeps signals from being seen on some platforms.
        while not ended.wait(1.0):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(settings: Settings, storage: Storage) -> dict[str, Any]:
    """The foreground command, or a change of what another one holds."""
    started, options = now(), settings.serve
    running = None if os.environ.get("RAY_ADDRESS") else rollout.address_of(options.port)
    if running:
        os.environ["RAY_ADDRESS"] = running
        rollout.show_token()
    elif not os.environ.get("RAY_ADDRESS"):
        require_free_port(options.host, options.port)
    require_keys(options)
    build(settings, storage)  # for what it refuses, before Ray starts
    models = versions_of(settings, storage)
    print("\n".join(model.gate for model in models), file=sys.stderr, flush=True)
    with haproxy.asked_for(options), ray_session():
        update = is_up()
        url = deploy(settings, storage, block=not update)
    if update:
        print(f"The endpoint at {url} has been changed: {models[0].card.checkpoint} answers", flush=True)
    return {"output": url, "started": started, "model": models[0].card.checkpoint, "changed": update}


def with_force(arguments: list[str]) -> list[str]:
    """``--force`` is short for ``--set serve.gate=ignore``."""
    return ["--set=serve.gate=ignore" if one == "--force" else one for one in arguments]


if __name__ == "__main__":
    run_job("serve", main, with_force(sys.argv[1:]), alone=False)
