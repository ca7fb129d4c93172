"""Riding out faults of the storage: repeat what may pass, with growing pauses, and say once that we wait.

An outage, a restart of the server, 5xx and throttling pass; refused keys, missing objects and bad names do not. Nothing
here loads a library before a call has failed.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stetholm.errors import UserError
from stetholm.storage.paths import StorageError

PATIENCE_SECONDS = 120.0
"""From the first failure of a call to the last try."""
NOTICE_SECONDS = 5.0
"""Shorter troubles go unmentioned; when one has lasted so long there is a try, so that this is said in time."""
_NEARLY = 0.1
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0

_CODES = {
    "BadDigest", "IncompleteBody", "InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling",
    "ThrottlingException", "TooManyRequests", "XAmzContentSHA256Mismatch",
}  # fmt: skip
"""Error codes of S3 that pass, whatever their HTTP status."""
_NUMBERS = {
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET,
}  # fmt: skip
_LASTING = (UserError, PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_ARROW = re.compile(
    r"AWS Error .*curlCode: (\d+), ([^;]+)|AWS Error .*HTTP status (\d+)"
    r"|AWS Error (NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|REQUEST_TIMEOUT|THROTTLING)"
)
"""How pyarrow's native filesystem tells of faults that may pass: only in the text of an OSError."""

T = TypeVar("T")


# --- what passes -------------------------------------------------------------------------------------------------


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, _LASTING) or "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    answer = _answer(error)
    if answer is not None:
        return answer[0] in _CODES or _passes(answer[1])
    if isinstance(error, ValueError):
        return False
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror | http.client.IncompleteRead):
        return True
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    return isinstance(error, _library_errors()) or (isinstance(error, OSError) and _arrow_passes(str(error)))


def is_lost_upload(error: BaseException) -> bool:
    """Whether the server has forgotten a multipart upload (rclone does when it restarts): start the upload anew."""
    answer = None if isinstance(error, UserError) else _answer(error)
    return answer is not None and answer[0] == "NoSuchUpload"


def reason(error: BaseException) -> str:
    """Why a call failed, in a few words."""
    answer = _answer(error)
    if answer is not None:
        return f"HTTP {answer[1]}" if answer[0] == str(answer[1]) else f"{answer[0]}, HTTP {answer[1]}"
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in _NUMBERS:
            return errno_text(link.errno)
    if match := _ARROW.search(str(error)):
        curl, text, status, code = match.groups()
        return errno_text(errno.ECONNREFUSED) if curl == "7" else text or (f"HTTP {status}" if status else code)
    return " ".join(str(error).split())[:120] or type(error).__name__


def errno_text(number: int | None) -> str:
    """A system error in words, e.g. ``connection refused``."""
    name = errno.errorcode.get(number or 0, "")
    return {"ECONNREFUSED": "connection refused", "ECONNRESET": "connection reset"}.get(name, name)


def _passes(status: int) -> bool:
    return status == 429 or (status >= 500 and status != 501)


def _arrow_passes(text: str) -> bool:
    match = _ARROW.search(text)
    return match is not None and (match[3] is None or _passes(int(match[3])))


def _answer(error: BaseException) -> tuple[str, int] | None:
    """Code and HTTP status of what S3 answered, from botocore's exception or from what s3fs made of it."""
    for candidate in (error, error.__cause__):
        response: Any = getattr(candidate, "response", None)
        if isinstance(response, dict) and "Error" in response:
            code = str(response["Error"].get("Code", ""))
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return code, int(status or (code if code.isdecimal() else 0))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what lies behind it; botocore keeps that in ``kwargs``, aiohttp in ``os_error``."""
    queue, seen = [error], set()
    while queue:
        link = queue.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        inner = getattr(link, "kwargs", None)
        behind = [inner.get("error") if isinstance(inner, dict) else None, getattr(link, "os_error", None)]
        queue += [one for one in (*behind, link.__cause__, link.__context__) if isinstance(one, BaseException)]


def _library_errors() -> tuple[type[BaseException], ...]:
    """Exceptions of the HTTP libraries for connections that broke or never came about."""
    import aiohttp
    import botocore.exceptions as boto
    from botocore.parsers import ResponseParserError

    # Throttling proxies answer what is no XML: the parser's error counts as well.
    return (
        aiohttp.ClientError, boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, ResponseParserError,
    )  # fmt: skip


# --- what is said ------------------------------------------------------------------------------------------------


@dataclass
class Notices:
    """Says once for each server that it does not answer, and once that it does again, however many calls wait."""

    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: dict[str, float] = field(default_factory=dict)
    """Servers that we have said are silent, and since when."""
    _back: dict[str, float] = field(default_factory=dict)

    def failed(self, where: str, why: str, since: float, patience_s: float) -> None:
        """A call has been failing ``since`` then."""
        now = self.clock()
        with self._lock:
            # A call that failed just before another one got through knows nothing of a new outage.
            new = (
                where not in self._waiting
                and now - max(since, self._back.get(where, since)) >= NOTICE_SECONDS - _NEARLY
            )
            if new:
                self._waiting[where] = since
        if new:
            self.say(
                f"storage: {where} does not answer ({why}); trying again for up to {minutes(since + patience_s - now)}"
            )

    def succeeded(self, where: str) -> None:
        """A call that had been failing got through."""
        now = self.clock()
        with self._lock:
            self._back[where] = now
            since = self._waiting.pop(where, None)
        if since is not None:
            self.say(f"storage: {where} answers again after {minutes(now - since)}")

    def ended(self, where: str) -> None:
        """A call has given up: its error says so."""
        with self._lock:
            self._waiting.pop(where, None)


_NOTICES = Notices()


def minutes(seconds: float) -> str:
    """Seconds as ``m:ss``."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


# --- patience ----------------------------------------------------------------------------------------------------


@dataclass
class Patience:
    """How long one call goes on trying, and how it pauses: exponential, capped, with full jitter."""

    what: str
    """What is tried, e.g. ``reading s3://bucket/key``."""
    where: str
    """The server."""
    patience_s: float = PATIENCE_SECONDS
    transient: Callable[[BaseException], bool] = is_transient
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[float, float], float] = random.uniform
    notices: Notices = field(default_factory=lambda: _NOTICES)
    _since: float | None = None
    _failures: int = 0

    def pause_after(self, error: Exception) -> float | None:
        """Seconds to wait before the next try; None: the error stands.

        Raises:
            StorageError: patience has ended.
        """
        if self.patience_s <= 0 or not self.transient(error):
            return None
        now = self.clock()
        if self._since is None:
            self._since = now
        left = self._since + self.patience_s - now
        if left <= 0:
            self.notices.ended(self.where)
            raise StorageError(
                f"storage: {self.where} did not answer for {minutes(now - self._since)} ({reason(error)}) while "
                f"{self.what}: see that the server runs and is reached, then start again"
            ) from error
        self.notices.failed(self.where, reason(error), self._since, self.patience_s)
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 16))
        self._failures += 1
        pause = min(self.draw(0.0, longest), left)
        notice_in = self._since + NOTICE_SECONDS - now
        return min(pause, notice_in) if notice_in > _NEARLY else pause

    def succeeded(self) -> None:
        """The call got through."""
        if self._since is not None:
            self.notices.succeeded(self.where)


def patiently(call: Callable[[], T], patience: Patience, sleep: Callable[[float], None] = time.sleep) -> T:
    """What ``call`` returns, tried again while it fails in ways that may pass.

    Args:
        call: makes one whole try.
        patience: a fresh one for each call.
        sleep: how to wait.

    Raises:
        StorageError: it has failed for all the time that patience gives.
    """
    while True:
        try:
            result = call()
        except Exception as error:
            pause = patience.pause_after(error)
            if pause is None:
                raise
        else:
            patience.succeeded()
            return result
        sleep(pause)


async def patiently_awaited(
    call: Callable[[], Awaitable[T]], patience: Patience, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> T:
    """:func:`patiently` for coroutines."""
    while True:
        try:
            result = await call()
        except Exception as error:
            pause = patience.pause_after(error)
            if pause is None:
                raise
        else:
            patience.succeeded()
            return result
        await sleep(pause)
