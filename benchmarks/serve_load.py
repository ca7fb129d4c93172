"""The questions that the endpoint's benchmarks ask, and clients that ask them over HTTP, many at once.

Every client waits for its answer before it asks again. Answers are streamed, so that the time to the first piece of
text is what a person would see.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from stetholm.audio.decode import Sound, encode_flac
from stetholm.audio.synth import DEVICES, synthesize_heart, synthesize_lung
from stetholm.serving.engine import Request, Sampling
from stetholm.serving.listening import listen, stack
from stetholm.settings import AudioSettings

CLIENTS = 32
QUESTIONS = (
    "Is this heart sound normal or abnormal?",
    "What is the primary sound event in this audio?",
    "Generate a brief summary of the lung sound findings, with the phase of breathing in which each is heard.",
    "Provide a diagnosis and explain your reasoning.",
)
MAX_TOKENS = (8, 16, 32, 64, 96)
RECORDINGS = (1, 1, 1, 2, 0)
"""How many a question has."""
SECONDS = (3.0, 7.0, 12.0)
"""Of a recording; the model hears 7 s."""
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Question:
    """What a client asks: text, FLAC files, and how long the answer is to be."""

    text: str
    recordings: tuple[bytes, ...]
    max_tokens: int

    def body(self, stream: bool = True) -> bytes:
        """As a chat completion."""
        parts: list[dict[str, Any]] = [
            {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "flac"}}
            for data in self.recordings
        ]
        parts.append({"type": "text", "text": self.text})
        fields: dict[str, Any] = {"model": "stetholm", "messages": [{"role": "user", "content": parts}]}
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return json.dumps({**fields, "max_tokens": self.max_tokens, **more}).encode()

    def request(self) -> Request:
        """As an engine takes it."""
        heard = [listen(data, AudioSettings()) for data in self.recordings]
        return Request(self.text, stack(heard), sampling=Sampling(max_new_tokens=self.max_tokens))


def questions(count: int, seed: int = 0) -> list[Question]:
    """``count`` questions of mixed lengths, each about recordings of its own; every kind as often, in random order."""
    rng = np.random.default_rng(seed)
    lengths = [MAX_TOKENS[place % len(MAX_TOKENS)] for place in range(count)]
    rng.shuffle(lengths)
    return [
        Question(
            QUESTIONS[place % len(QUESTIONS)],
            tuple(_recording(rng) for _ in range(RECORDINGS[place % len(RECORDINGS)])),
            length,
        )
        for place, length in enumerate(lengths)
    ]


def _recording(rng: np.random.Generator) -> bytes:
    seconds = float(rng.choice(SECONDS))
    if rng.random() < 0.5:
        made = synthesize_heart(None, site="aortic area", device=DEVICES[0], rng=rng, seconds=seconds)
    else:
        made = synthesize_lung(None, site="posterior right chest", device=DEVICES[0], rng=rng, seconds=seconds)
    return encode_flac(Sound(made.samples, made.rate, 16))


@dataclass(frozen=True)
class Seen:
    """What a client saw of one answer: seconds to its first text and to its end, and the tokens it is said to have."""

    first: float
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Load:
    """What all clients saw together."""

    seconds: float
    seen: tuple[Seen, ...]

    @property
    def answers_per_second(self) -> float:
        """Over the whole time, its end included, when fewer and fewer are asking."""
        return len(self.seen) / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Of the answers."""
        return sum(one.tokens for one in self.seen) / self.seconds

    def first(self, percent: float) -> float:
        """That percentile of the time to the first text, in s."""
        return float(np.percentile([one.first for one in self.seen], percent))


def put_load(url: str, asked: Sequence[Question], clients: int = CLIENTS, stream: bool = True) -> Load:
    """Let ``clients`` ask ``asked`` of the endpoint at ``url``, in this order.

    Raises:
        RuntimeError: a question was not answered, or not in the length it asked for.
    """
    return asyncio.run(_put_load(url, asked, clients, stream))


async def _put_load(url: str, asked: Sequence[Question], clients: int, stream: bool) -> Load:
    bodies = [question.body(stream) for question in asked]
    places = iter(range(len(asked)))
    async with session(clients) as http:
        began = time.perf_counter()
        seen = await asyncio.gather(*(_client(http, url, places, asked, bodies, stream) for _ in range(clients)))
        seconds = time.perf_counter() - began
    return Load(seconds, tuple(one for of_client in seen for one in of_client))


def session(clients: int = CLIENTS) -> aiohttp.ClientSession:
    """A client's connections: as many as there are clients, kept open."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients), timeout=timeout)


async def _client(
    http: aiohttp.ClientSession,
    url: str,
    places: Iterator[int],
    asked: Sequence[Question],
    bodies: Sequence[bytes],
    stream: bool,
) -> list[Seen]:
    seen = []
    for place in places:
        one = await ask(http, url, bodies[place], stream)
        if one.tokens != asked[place].max_tokens:
            raise RuntimeError(f"{url}: {one.tokens} tokens, not {asked[place].max_tokens}")
        seen.append(one)
    return seen


async def ask(http: aiohttp.ClientSession, url: str, body: bytes, stream: bool = True) -> Seen:
    """Ask one question and read its whole answer.

    Raises:
        RuntimeError: it was refused, or its answer broke off.
    """
    began = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    async with http.post(f"{url}/v1/chat/completions", data=body, headers=headers) as response:
        if response.status != 200:
            raise RuntimeError(f"{url}: HTTP {response.status} {(await response.text())[:200]}")
        if not stream:
            tokens = (await response.json())["usage"]["completion_tokens"]
            return Seen(time.perf_counter() - began, time.perf_counter() - began, tokens)
        first, tokens = await _read(response)
    return Seen(first - began, time.perf_counter() - began, tokens)


async def _read(response: aiohttp.ClientResponse) -> tuple[float, int]:
    """When the first text came (``time.perf_counter``), and the tokens of the answer."""
    first: float | None = None
    tokens: int | None = None
    async for chunk in chunks(response):
        if first is None and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            first = time.perf_counter()
        tokens = chunk["usage"]["completion_tokens"] if chunk.get("usage") else tokens
    if first is None or tokens is None:
        raise RuntimeError(f"{response.url}: the answer broke off")
    return first, tokens


async def chunks(response: aiohttp.ClientResponse) -> Any:
    """The chunks of a streamed answer, as they come."""
    async for line in response.content:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])
