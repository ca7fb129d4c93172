"""What stands before Ray Serve's own HTTP server: no header of a client's reaches its logs, and its errors are ours.

Serve's proxy, and behind HAProxy each ingress replica, asks :func:`middlewares` once; ``RAY_SERVE_HTTP_PROXY_CALLBACK_
IMPORT_PATH`` in their environment names it. ``import serve`` sets it for a Ray that this process starts; nodes of a
cluster get it from their image or their start command.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError, error_response, overloaded
from serve.visit import MARK, sane_id

IMPORT_PATH = "serve.edge:middlewares"
ID = b"x-request-id"
OURS_ALONE = (
    b"serve-multiplexed-model-id",
    b"x-session-id",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
)
"""By these a client would have a say in what Serve logs, whom it asks, and when it gives up."""
SERVES_OWN = (404, 408, 500, 502, 503, 504)
"""Statuses that Serve answers with by itself."""
OWN_ROUTES = "/-/"
"""Serve's own, for load balancers."""


def middlewares() -> list[Middleware]:
    """What Serve is to put around its HTTP server."""
    return [Middleware(Edge)]


class Edge:
    """ASGI middleware around all of Serve."""

    def __init__(self, app: ASGIApp) -> None:
        """``app``: Serve's."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give the request a harmless id, and what Serve refuses by itself OpenAI's error object."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = sane_id(next((value for name, value in scope["headers"] if name == ID), b"").decode("latin-1"))
        scope = {**scope, "headers": [*_harmless(scope["headers"]), (ID, request_id.encode())]}
        if scope["path"].startswith(OWN_ROUTES):
            await self.app(scope, receive, send)
        else:
            answer = Answer(scope, receive, send, request_id)
            await self.app(scope, receive, answer)
            await answer.end()


def _harmless(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    left_out = (ID, *OURS_ALONE)
    return [(name, value) for name, value in headers if name.lower().replace(b"_", b"-") not in left_out]


class Answer:
    """A ``send`` that puts our error in the place of one that did not come from the application."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        """Of one request."""
        self._scope, self._receive, self._send = scope, receive, send
        self._id = request_id
        self._started = self._replaced = False

    async def __call__(self, message: Message) -> None:
        """Pass on, or replace."""
        if message["type"] == "http.response.start" and message["status"] in SERVES_OWN and not _is_ours(message):
            await self._replace(message["status"])
        elif not self._replaced:
            self._started = True
            await self._send(message)

    async def end(self) -> None:
        """Answer, if Serve has not: so it does where the ingress replica dies."""
        if not self._started and not self._replaced:
            await self._replace(500)

    async def _replace(self, status: int) -> None:
        self._replaced = True
        response = error_response(_error(status))
        response.headers["X-Request-ID"] = self._id
        await response(self._scope, self._receive, self._send)


def _is_ours(message: Message) -> bool:
    return any(name.lower() == MARK for name, _ in message.get("headers", ()))


def _error(status: int) -> ApiError:
    """What Serve means by a status: it is full, a time has run out, or the ingress replica is gone."""
    if status == 404:
        return ApiError(404, "nothing is served here")
    if status == 503:
        return overloaded("too many requests at once")
    if status == 408:
        return overloaded("the answer took too long", code="timeout")
    return overloaded("the request was lost on its way", code="unavailable")
