"""Ask an OpenAI-compatible endpoint many things: bounded, within the provider's rate, patient, and never in silence.

    async def work(ask, prompt):              # a coroutine function: one item, one or several requests
        answer = await ask([{"role": "user", "content": prompt}], max_tokens=100)
        return answer.text

    for_all(settings, prompts, work, on_done)  # settings: EndpointSettings; on_done(place, result or NotAnswered)

What may pass (no connection, a timeout, 408, 409, 429, 5xx, HTML or broken JSON where an answer should be) is tried
again with growing pauses; a ``Retry-After`` holds for all requests, not only for the one that was told. One prompt that
gets no answer is a :class:`NotAnswered`, and the others go on. Several in a row, refused keys or an unknown model are
an :class:`EndpointError`: the endpoint is no use, and nothing more is asked (or paid).

The key comes from the environment variable that the settings name. Redirects are not followed, so it goes nowhere else.
Not the package ``openai``: its retries are each request's own, so a hundred of them go on asking a server that has said
when to come back; and it takes an HTML page for an answer.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import httpx

from stetholm.errors import UserError
from stetholm.settings.endpoint import EndpointSettings

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": ...}``."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LONGEST_RETRY_AFTER_S = 120.0
"""Who asks us to wait for longer is told to the user instead."""
FAILURES_IN_A_ROW = 3
"""Prompts that got no answer for the endpoint's faults, without an answer between them, before it is given up."""
MAX_BYTES = 4 * 2**20
"""Of one reply."""

T = TypeVar("T")
R = TypeVar("R")


class EndpointError(UserError):
    """The endpoint cannot be used, whatever the prompt."""


class NotAnswered(Exception):
    """One prompt has got no answer; the message says why.

    ``refused``: the endpoint has answered, but without a text (or will not answer this prompt): asking again is no use,
    and may be paid for.
    """

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class _Fault(Exception):
    """What may pass. ``retry_after``: seconds that the endpoint asks us to wait."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Completion:
    """An answer, and what it cost.

    Token counts are 0 where the endpoint tells none: who reckons with them must estimate them by the texts, as
    :func:`stetholm.corpus.synthesis.cost.used_tokens` does.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Completions:
    """A connection to one endpoint; an async context manager. Safe for many coroutines of one event loop."""

    def __init__(self, settings: EndpointSettings, setting: str = "endpoint") -> None:
        """Make it; nothing is sent yet.

        Args:
            settings: the endpoint's.
            setting: where they stand in the tree, for messages, e.g. ``evaluate.judge``.

        Raises:
            EndpointError: no base_url or no model.
        """
        if not settings.base_url or not settings.model:
            raise EndpointError(f"{setting}: an endpoint needs base_url (e.g. https://host/v1) and model")
        self.settings, self.setting = settings, setting
        self.requests = self.prompt_tokens = self.completion_tokens = 0
        """Sums over what was asked, as far as the endpoint tells them."""
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        key = os.environ.get(settings.key_variable, "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(headers=headers, timeout=settings.timeout_s, follow_redirects=False)
        self._places = asyncio.Semaphore(settings.concurrency)
        self._next_slot = self._not_before = 0.0
        self._failures = 0

    async def __aenter__(self) -> Completions:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def __call__(self, messages: Sequence[Message], **fields: Any) -> Completion:
        """The answer to ``messages``.

        Args:
            messages: the conversation so far.
            fields: more of the request, e.g. ``max_tokens=64``, ``temperature=0.0``, ``seed=0``.

        Raises:
            NotAnswered: this prompt is refused, or has failed ``settings.attempts`` times.
            EndpointError: the endpoint cannot be used.
        """
        body = {"model": self.settings.model, "messages": list(messages), **fields, **self.settings.extra}
        body = {name: value for name, value in body.items() if value is not None}
        async with self._places:
            for attempt in range(1, self.settings.attempts + 1):
                try:
                    return self._count(await self._once(body))
                except _Fault as fault:
                    if attempt == self.settings.attempts:
                        raise self._given_up(fault) from fault
                    await self._pause(fault, attempt)
        raise AssertionError("attempts is at least 1")

    def _count(self, answer: Completion) -> Completion:
        self._failures = 0
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        return answer

    def _given_up(self, fault: _Fault) -> Exception:
        self._failures += 1
        tried = f"{fault} ({self.settings.attempts} attempts)"
        return self._error(tried) if self._failures >= FAILURES_IN_A_ROW else NotAnswered(tried)

    def _error(self, problem: str, advice: str = "see that it runs and is reached, then start again") -> EndpointError:
        return EndpointError(f"{self.setting}: {self._url}: {problem}: {advice}")

    async def _pause(self, fault: _Fault, attempt: int) -> None:
        """Wait as the endpoint asks, which holds for all requests, or with exponential backoff and full jitter."""
        if fault.retry_after is None:
            await asyncio.sleep(random.uniform(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)))
        elif fault.retry_after > LONGEST_RETRY_AFTER_S:
            raise self._error(f"{fault}; it asks us to wait {fault.retry_after:.0f} s", "start again later")
        else:
            self._not_before = max(self._not_before, time.monotonic() + fault.retry_after)

    async def _turn(self) -> None:
        """Wait for this request's place in the rate, and for the end of a pause that the endpoint asked for."""
        if self.settings.requests_per_minute:
            slot = max(time.monotonic(), self._next_slot)
            self._next_slot = slot + 60.0 / self.settings.requests_per_minute
            await asyncio.sleep(slot - time.monotonic())
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _once(self, body: dict[str, Any]) -> Completion:
        """One request."""
        await self._turn()
        self.requests += 1
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                response, data = await self._post(body)
        except (TimeoutError, httpx.TimeoutException):
            raise _Fault(f"no answer within {self.settings.timeout_s:g} s") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise self._error(str(error), "correct base_url") from error
        except httpx.TransportError as error:
            raise _Fault(f"no connection ({_short(str(error)) or type(error).__name__})") from error
        self._require_good(response, data)
        return parse(data, response.headers.get("content-type", ""))

    async def _post(self, body: dict[str, Any]) -> tuple[httpx.Response, bytes]:
        data = bytearray()
        async with self._http.stream("POST", self._url, json=body) as response:
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise _Fault(f"a reply of more than {MAX_BYTES} bytes")
        return response, bytes(data)

    def _require_good(self, response: httpx.Response, data: bytes) -> None:
        """Sort the failures: those that may pass, the endpoint's, and this prompt's."""
        status = response.status_code
        if status == 200:
            return
        said = f"HTTP {status} {_message(data)}".strip()
        if status in (408, 409, 429) or status >= 500:
            raise _Fault(said, retry_after(response.headers.get("retry-after")))
        if status in (401, 403):
            raise self._error(said, f"set the environment variable {self.settings.key_variable} to a key that it takes")
        if status in (404, 405) or 300 <= status < 400:
            raise self._error(said, f"see that base_url and model ({self.settings.model}) are right")
        raise NotAnswered(said, refused=True)


def parse(data: bytes, content_type: str = "") -> Completion:
    """The first choice of a chat completion.

    Raises:
        _Fault: it is something else, such as a proxy's HTML page.
        NotAnswered: it holds no text (a refusal, a filter).
    """
    if "html" in content_type or data.lstrip()[:1] == b"<":
        raise _Fault(f"HTML where JSON should be ({_short(_text(data))}); does base_url end where the API begins?")
    try:
        reply = json.loads(data)
        choice = reply["choices"][0]
        text, usage = choice["message"].get("content"), reply.get("usage") or {}
        reason = str(choice.get("finish_reason") or "stop")
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Fault(f"no chat completion ({_short(_text(data)) or 'empty'})") from None
    if not isinstance(text, str) or not text.strip():
        raise NotAnswered(f"an empty answer (finish_reason {reason})", refused=True)
    return Completion(text, reason, *tokens)


def retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header, which holds seconds or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _message(data: bytes) -> str:
    """What an error's body says, in short: OpenAI's error object, or the text itself."""
    try:
        error = json.loads(data)["error"]
        return _short(str(error["message"] if isinstance(error, dict) else error))
    except (ValueError, KeyError, TypeError, RecursionError):
        return _short(_text(data))


def _text(data: bytes) -> str:
    return data[:2000].decode("utf-8", "replace")


def _short(text: str) -> str:
    return " ".join(text.split())[:160]


def for_all(
    settings: EndpointSettings,
    items: Sequence[T],
    work: Callable[[Completions, T], Awaitable[R]],
    on_done: Callable[[int, R | NotAnswered], None],
    setting: str = "endpoint",
) -> None:
    """Do ``work`` for every item, ``settings.concurrency`` at once, and report each as it is done.

    Args:
        settings: the endpoint's.
        items: what there is to do.
        work: asks (its first argument) and makes the result of one item.
        on_done: called in this thread with the item's place and its result, or why it has none. What it has been
            given counts as paid: keep it there.
        setting: where the settings stand in the tree, for messages.

    Raises:
        EndpointError: the endpoint cannot be used. Results up to then have been reported.
    """
    asyncio.run(_for_all(settings, items, work, on_done, setting))


async def _for_all(
    settings: EndpointSettings,
    items: Sequence[T],
    work: Callable[[Completions, T], Awaitable[R]],
    on_done: Callable[[int, R | NotAnswered], None],
    setting: str,
) -> None:
    places = iter(range(len(items)))

    async def worker(ask: Completions) -> None:
        for place in places:
            try:
                result: R | NotAnswered = await work(ask, items[place])
            except NotAnswered as reason:
                result = reason
            on_done(place, result)

    async with Completions(settings, setting) as ask:
        workers = [asyncio.create_task(worker(ask)) for _ in range(min(settings.concurrency, len(items)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for one in workers:
                one.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
