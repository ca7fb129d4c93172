"""One HTTP request from its arrival to its end: its id, whose it is, and the line it leaves in the access log."""

from __future__ import annotations

import logging
import re
import time
import traceback
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Scope, Send

from serve.keys import ApiKey

logger = logging.getLogger("stetholm.serve")
access = logging.getLogger("stetholm.serve.access")

CLIENT_GONE = 499
"""Status in log and metrics of a request whose client left before its answer."""
ROUTES = ("/v1/chat/completions", "/v1/analyze", "/v1/models", "/healthz", "/readyz", "/openapi.json", "/page", "/")
"""What log and metrics call them; anything else is ``other``, for a path may hold whatever a client writes."""
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cache-Control": "no-store",
}
request_id: ContextVar[str] = ContextVar("stetholm_request_id", default="-")
"""Of the request that is being answered."""
key_name: ContextVar[str | None] = ContextVar("stetholm_key_name", default=None)
"""Whose request it is, where keys are asked for."""
MARK = b"x-content-type-options"
"""A header that every answer of the application has, and none that Serve gives by itself."""
_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def sane_id(given: str | None) -> str:
    """A client's ``X-Request-ID`` where that is harmless, else a fresh one."""
    return given if given and _GOOD_ID.fullmatch(given) else uuid.uuid4().hex


def route_of(path: str) -> str:
    """The route that a path belongs to."""
    return next((route for route in ROUTES if path == route or path.startswith(f"{route}/")), "other")


class Visit:
    """A request. On Serve its id comes from :mod:`serve.edge`."""

    def __init__(self, scope: Scope) -> None:
        """``scope`` of an HTTP request."""
        self.headers = Headers(scope=scope)
        given = self.headers.get("x-request-id")
        self._given = given is not None
        self.id = sane_id(given)
        self.method, self.route = str(scope["method"]), route_of(scope["path"])
        self.key: ApiKey | None = None
        self.body_bytes = 0
        self.status: int | None = None
        self.arrived = time.time()
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it came in."""
        return time.monotonic() - self._began

    def sender(self, send: Send) -> Send:
        """``send`` that adds safe headers and sees the status."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
                if not self._given:  # Ray Serve's proxy answers with the id itself when it sees one in the request
                    headers.setdefault("X-Request-ID", self.id)
            await send(message)

        return send_safely

    def log_end(self) -> int:
        """The access log's line; returns the status that counts."""
        status = CLIENT_GONE if self.status is None else self.status
        access.info(
            "access id=%s key=%s method=%s route=%s status=%d bytes=%d seconds=%.3f",
            self.id,
            self.key.name if self.key else "-",
            self.method if self.method.isalpha() else "other",
            self.route,
            status,
            self.body_bytes,
            self.seconds,
        )
        return status


def log_failure(error: Exception) -> None:
    """Where the current request failed and how, without the message: that may hold what the user sent."""
    frames = "".join(traceback.format_tb(error.__traceback__)[-6:])
    logger.error("request %s failed with %s at\n%s", request_id.get(), type(error).__name__, frames)
