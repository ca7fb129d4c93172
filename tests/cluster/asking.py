"""Clients of an endpoint, which ask one question after another and keep what became of each."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

BODY = {
    "model": "stetholm",
    "messages": [{"role": "user", "content": "What does a wheeze sound like?"}],
    "max_tokens": 8,
}


@dataclass(frozen=True)
class Asked:
    """One request: when it began and ended (seconds since 1970), and what came of it."""

    began: float
    ended: float
    url: str
    outcome: str
    """``200``, another status, or the name of an exception."""


@dataclass
class Clients:
    """What the clients have seen so far."""

    asked: list[Asked] = field(default_factory=list)

    def since(self, time_: float) -> list[Asked]:
        """Requests that ended after a time."""
        return [each for each in self.asked if each.ended > time_]

    def failed(self) -> list[Asked]:
        """Requests without an answer."""
        return [each for each in self.asked if each.outcome != "200"]


@contextmanager
def asking(urls: Sequence[str], clients: int = 4, pause_s: float = 0.05, timeout_s: float = 150) -> Iterator[Clients]:
    """Ask for the length of the block: each client the next of ``urls`` in turn, a pause after each answer."""
    seen, stop = Clients(), threading.Event()
    threads = [
        threading.Thread(target=_client, args=(urls[at:] + urls[:at], pause_s, timeout_s, seen, stop), daemon=True)
        for at in (number % len(urls) for number in range(clients))
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout_s + 10)


def _client(urls: Sequence[str], pause_s: float, timeout_s: float, seen: Clients, stop: threading.Event) -> None:
    with httpx.Client(timeout=timeout_s, trust_env=False) as client:
        for url in itertools.cycle(urls):
            if stop.is_set():
                return
            seen.asked.append(_ask(client, url))
            time.sleep(pause_s)


def _ask(client: httpx.Client, url: str) -> Asked:
    began = time.time()
    try:
        outcome = str(client.post(f"{url}/v1/chat/completions", json=BODY).status_code)
    except httpx.HTTPError as error:
        outcome = type(error).__name__
    return Asked(began, time.time(), url, outcome)


def longest_gap(asked: Sequence[Asked], begin: float, end: float) -> float:
    """Seconds, at most, between two answers in a time."""
    times = sorted(each.ended for each in asked if each.outcome == "200" and begin <= each.ended <= end)
    return max(later - earlier for earlier, later in itertools.pairwise([begin, *times, end]))
