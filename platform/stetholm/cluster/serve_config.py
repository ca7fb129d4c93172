"""The endpoint as a Serve deploy config: what ``serve deploy`` and RayService read."""

from __future__ import annotations

import ipaddress
from typing import Any

from stetholm.cluster.explicit import pairs
from stetholm.errors import UserError
from stetholm.settings import ServeSettings, Settings

APPLICATION = "stetholm"
IMPORT_PATH = "serve.app:build_app"
SLACK_S = 10.0
"""Serve's own timeout comes this much after ours, which answers better."""


def require_keys(options: ServeSettings, host: str | None = None) -> None:
    """Other machines may ask only with keys, unless somebody has said that they may without.

    Args:
        options: of the endpoint.
        host: the address that it listens on; default ``options.host``.

    Raises:
        UserError: they could without.
    """
    host = host or options.host
    if options.api_keys_file is None and not options.allow_anonymous and not _is_own(host):
        raise UserError(
            f"whoever reaches {host} could ask the endpoint: name keys with serve.api_keys_file "
            "(python -m serve.keys makes them), or say that all may with serve.allow_anonymous=true"
        )


def _is_own(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve_config(settings: Settings, host: str | None = None) -> dict[str, Any]:
    """A Serve deploy config of one application.

    The settings go along as the application's arguments: a change of one of them is a change of the config, and
    ``serve deploy`` or KubeRay then replaces the replicas one by one.

    Args:
        settings: the tree.
        host: the address to listen on; default ``serve.host``. Pods listen on all: their network is their own.

    Raises:
        UserError: other machines could ask without a key, and nobody has allowed it.
    """
    require_keys(settings.serve, host)
    return {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": host or settings.serve.host,
            "port": settings.serve.port,
            "request_timeout_s": settings.serve.request_timeout_s + SLACK_S,
        },
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": {"set": pairs(settings)},
            }
        ],
    }
