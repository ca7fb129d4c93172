"""What every HTTP request passes first: key, body limit, safe headers; and what no failure may get past."""

from __future__ import annotations

import asyncio
import logging
import traceback
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError, error_response
from serve.keys import ApiKeys

logger = logging.getLogger("stetholm.serve")

PROTECTED = "/v1/"
BODY_TIMEOUT_S = 30.0
"""A body must have come whole by then, however slowly it drips."""

SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, max_body_bytes: int, body_timeout_s: float = BODY_TIMEOUT_S
    ) -> None:
        """``max_body_bytes`` is enforced while reading, whatever Content-Length says."""
        self.app, self.keys = app, keys
        self.max_body_bytes, self.body_timeout_s = max_body_bytes, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let good requests through; answer the others here, before anything is parsed."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False
        request_id = Headers(scope=scope).get("x-request-id")
        fresh_id = None if request_id else uuid.uuid4().hex

        async def send_safely(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _add_headers(message, fresh_id)
            await send(message)

        try:
            self._check_key(scope)
            body = await self._read(scope, receive)
            await self.app(scope, _replay(body, receive), send_safely)
        except ApiError as error:
            # The rest of the body is not wanted: the connection cannot be used again.
            error.headers["Connection"] = "close"
            await error_response(error)(scope, receive, send_safely)
        except Exception as error:
            _log(request_id or fresh_id, error)
            if not started:
                await error_response(ApiError(500, "internal error"))(scope, receive, send_safely)

    def _check_key(self, scope: Scope) -> None:
        if not self.keys.entries or not scope["path"].startswith(PROTECTED):
            return
        if self.keys.owner(Headers(scope=scope).get("authorization")) is None:
            raise ApiError(
                401,
                "missing or unknown API key: send Authorization: Bearer <key>",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, at most ``max_body_bytes``."""
        promised = Headers(scope=scope).get("content-length", "0")
        if promised.isdecimal() and int(promised[:20]) > self.max_body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the client closed the connection before the body was whole")
                    body += message.get("body", b"")
                    if len(body) > self.max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as error:
            raise ApiError(408, f"the body did not come within {self.body_timeout_s:g} s") from error

    def _too_large(self) -> ApiError:
        limit = f"the body is larger than {self.max_body_bytes} bytes"
        return ApiError(413, limit, code="request_too_large")


def _add_headers(message: Message, request_id: str | None) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in SAFE_HEADERS.items():
        headers.setdefault(name, value)
    if request_id:  # Ray Serve's proxy adds the id itself when it sees one in the request
        headers.setdefault("X-Request-ID", request_id)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body once and then what really comes, i.e. the disconnect."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _log(request_id: str | None, error: Exception) -> None:
    """Where it failed and how, without the message: that may hold what the user sent."""
    frames = "".join(traceback.format_tb(error.__traceback__)[-6:])
    logger.error("request %s failed with %s at\n%s", request_id, type(error).__name__, frames)
