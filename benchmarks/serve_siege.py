"""Clients that ask an endpoint without pause, while something is done to it, and count what was not answered.

No client asks again: what the endpoint does not answer well at the first time is a failure.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TOKENS = 8
"""Of an answer."""
PATIENCE_S = 180.0


@dataclass(frozen=True)
class Outcome:
    """One request, as its client saw it."""

    streamed: bool
    began: float
    """On the monotonic clock, as ``ended``."""
    ended: float
    model: str = ""
    """Who answered."""
    fault: str = ""
    """What went wrong; empty: it was answered, to its end."""


@dataclass
class Siege:
    """What has been asked so far."""

    url: str
    tokens: int = TOKENS
    outcomes: list[Outcome] = field(default_factory=list)
    clients: int = 0
    """How many may ask at once; may be changed at any time."""
    over: bool = False

    def wait_for(self, count: int, timeout_s: float = 4 * PATIENCE_S) -> None:
        """Return when ``count`` more requests are over.

        Raises:
            TimeoutError: they are not in time.
        """
        target = len(self.outcomes) + count
        self.wait_until(lambda: len(self.outcomes) >= target, timeout_s)

    def wait_until(self, met: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Return when ``met`` says so, asking meanwhile.

        Raises:
            TimeoutError: it does not in time.
        """
        deadline = time.monotonic() + timeout_s
        while not met():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s:g} s")
            time.sleep(0.1)

    def failed(self, streamed: bool | None = None) -> list[Outcome]:
        """What was not answered, of the streamed requests, the others, or both."""
        return [one for one in self.outcomes if one.fault and streamed in (None, one.streamed)]

    def models(self) -> Counter[str]:
        """How many answers of whom."""
        return Counter(one.model for one in self.outcomes if not one.fault)

    def longest_s(self) -> float:
        """The longest that an answer took."""
        return max(one.ended - one.began for one in self.outcomes)


@contextmanager
def besieged(url: str, clients: int, tokens: int = TOKENS) -> Iterator[Siege]:
    """Ask the endpoint at ``url`` for the duration of the block, and then until every request is over.

    Every second client streams.
    """
    siege = Siege(url, tokens, clients=clients)
    thread = threading.Thread(target=lambda: asyncio.run(_ask_all(siege, clients)))
    thread.start()
    try:
        yield siege
    finally:
        siege.over = True
        thread.join()


async def _ask_all(siege: Siege, clients: int) -> None:
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        await asyncio.gather(*(_client(http, siege, number) for number in range(clients)))


async def _client(http: aiohttp.ClientSession, siege: Siege, number: int) -> None:
    while not siege.over:
        if number >= siege.clients:
            await asyncio.sleep(0.1)
            continue
        streamed, began = bool(number % 2), time.monotonic()
        try:
            model, fault = await _ask(http, siege, streamed)
        except (aiohttp.ClientError, TimeoutError) as error:
            model, fault = "", type(error).__name__
        siege.outcomes.append(Outcome(streamed, began, time.monotonic(), model, fault))


async def _ask(http: aiohttp.ClientSession, siege: Siege, streamed: bool) -> tuple[str, str]:
    """Who answered, and what went wrong."""
    message = {"role": "user", "content": "Is this heart sound normal or abnormal?"}
    body = {"model": "stetholm", "messages": [message], "max_tokens": siege.tokens, "stream": streamed}
    async with http.post(f"{siege.url}/v1/chat/completions", json=body) as response:
        text = await response.text()
    if response.status != 200:
        return "", f"{response.status} {text[:200]}"
    return _streamed(text) if streamed else _whole(json.loads(text))


def _whole(answer: dict[str, Any]) -> tuple[str, str]:
    return str(answer["model"]), "" if answer["choices"][0]["finish_reason"] else "no end"


def _streamed(text: str) -> tuple[str, str]:
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    if events[-1:] != ["[DONE]"]:
        return "", f"broken off: {events[-1][:200] if events else 'empty'}"
    models = {str(json.loads(event)["model"]) for event in events[:-1]}
    return "+".join(sorted(models)), "" if len(models) == 1 else "two models in one answer"
