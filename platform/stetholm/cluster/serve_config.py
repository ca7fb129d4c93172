"""The endpoint as a Serve deploy config: what ``serve deploy`` and RayService read."""

from __future__ import annotations

from typing import Any

from stetholm.cluster.explicit import pairs
from stetholm.settings import Settings

APPLICATION = "stetholm"
IMPORT_PATH = "serve.app:build_app"
SLACK_S = 10.0
"""Serve's own timeout comes this much after ours, which answers better."""


def serve_config(settings: Settings, host: str | None = None) -> dict[str, Any]:
    """A Serve deploy config of one application.

    The settings go along as the application's arguments: a change of one of them is a change of the config, and
    ``serve deploy`` or KubeRay then replaces the replicas one by one.

    Args:
        settings: the tree.
        host: the address to listen on; default ``serve.host``. Pods listen on all: their network is their own.
    """
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
