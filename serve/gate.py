"""What every HTTP request passes first: key, limits, body size; and what no failure may get past."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError, error_response, overloaded
from serve.keys import ApiKey, ApiKeys
from serve.limits import Limiter, LocalLimiter
from serve.metrics import HttpMetrics, arrived
from serve.visit import Visit, key_name, log_failure, request_id

PROTECTED = "/v1/"
BODY_TIMEOUT_S = 30.0
"""A body must have come whole by then, however slowly it drips."""
PROMPT_S = 1.0
SLOW_AT_ONCE = 64
"""So many bodies that take longer than ``PROMPT_S`` one ingress replica waits for; more are asked to come again."""
BODIES_AT_ONCE = 8
"""All bodies together may take as much memory as so many of the largest; more are asked to come again."""


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        max_body_bytes: int,
        limiter: Limiter | None = None,
        metrics: HttpMetrics | None = None,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        """``max_body_bytes`` is enforced while reading, whatever Content-Length says."""
        self.app, self.keys = app, keys
        self.max_body_bytes, self.body_timeout_s = max_body_bytes, body_timeout_s
        self._limiter = limiter or LocalLimiter()
        self._metrics = metrics or HttpMetrics()
        self._held = 0
        """Bytes of all bodies in memory."""
        self._slow = 0
        """Slow bodies that are being waited for."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let good requests through; answer the others here, before anything is parsed."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit(scope)
        arrived.set(visit.arrived)
        request_id.set(visit.id)
        send_safely = visit.sender(send)
        try:
            visit.key = self._key(scope["path"], visit)
            key_name.set(visit.key.name if visit.key else None)
            await self._count(visit.key)
            body = await self._read(visit, receive)
            await self.app(scope, _replay(body, receive), send_safely)
        except ApiError as error:
            # The rest of the body is not wanted: the connection cannot be used again.
            error.headers["Connection"] = "close"
            await error_response(error)(scope, receive, send_safely)
        except Exception as error:
            log_failure(error)
            if visit.status is None:
                await error_response(ApiError(500, "internal error"))(scope, receive, send_safely)
        finally:
            self._held -= visit.body_bytes
            self._metrics.answered(visit.route, visit.log_end(), visit.seconds)

    def _key(self, path: str, visit: Visit) -> ApiKey | None:
        """Whose request this is; None where no key is needed."""
        if not self.keys.entries or not path.startswith(PROTECTED):
            return None
        key = self.keys.owner(visit.headers.get("authorization"))
        if key is None:
            raise ApiError(
                401,
                "missing or unknown API key: send Authorization: Bearer <key>",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return key

    async def _count(self, key: ApiKey | None) -> None:
        if key is None or not key.limits:
            return
        refusal = await self._limiter.take(key.name, key.limits)
        if refusal is not None:
            self._metrics.refused.inc(1, {"key": key.name})
            raise ApiError(
                429,
                f"this key may ask {refusal.limit}: try again in {refusal.retry_after_s} s",
                code="insufficient_quota" if refusal.quota else "rate_limit_exceeded",
                headers={"Retry-After": str(refusal.retry_after_s)},
            )

    async def _read(self, visit: Visit, receive: Receive) -> bytes:
        """The whole body, at most ``max_body_bytes``."""
        promised = visit.headers.get("content-length", "0")
        if promised.isdecimal() and int(promised[:20]) > self.max_body_bytes:
            raise self._too_large()
        reading = asyncio.create_task(self._whole(visit, receive))
        try:
            done, _ = await asyncio.wait([reading], timeout=PROMPT_S)
            if not done:
                await self._wait(reading)
            return await reading
        finally:
            reading.cancel()

    async def _wait(self, reading: asyncio.Task[bytes]) -> None:
        """For a slow one, unless there are too many of them: so they stand in each other's way, and not in others'."""
        if self._slow >= SLOW_AT_ONCE:
            raise overloaded("too many requests are still being sent")
        self._slow += 1
        try:
            await asyncio.wait([reading])
        finally:
            self._slow -= 1

    async def _whole(self, visit: Visit, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the client closed the connection before the body was whole")
                    self._hold(visit, len(message.get("body", b"")))
                    body += message.get("body", b"")
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as error:
            raise ApiError(408, f"the body did not come within {self.body_timeout_s:g} s") from error

    def _hold(self, visit: Visit, size: int) -> None:
        """Count ``size`` more bytes of a body."""
        visit.body_bytes += size
        self._held += size
        if visit.body_bytes > self.max_body_bytes:
            raise self._too_large()
        if self._held > BODIES_AT_ONCE * self.max_body_bytes:
            raise overloaded("too many large requests at once")

    def _too_large(self) -> ApiError:
        limit = f"the body is larger than {self.max_body_bytes} bytes"
        return ApiError(413, limit, code="request_too_large")


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
