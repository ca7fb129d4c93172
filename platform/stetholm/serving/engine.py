"""The one interface behind which text is generated, offline (jobs) and online (the endpoint).

``TransformersEngine`` is the reference; any other engine takes the same requests and gives the same answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from stetholm.errors import UserError

FinishReason = Literal["stop", "length"]
"""``stop``: end of sequence or a stop string. ``length``: the token budget was used up."""


class RequestError(UserError):
    """A request that this model cannot answer, whatever the load: too long, or settings that contradict."""


class EngineBusy(Exception):
    """The waiting queue is full: ask again later."""


class EngineDead(Exception):
    """What generates has ended by itself: this engine will answer nothing any more."""


@dataclass(frozen=True)
class Sampling:
    """How one request is decoded.

    ``temperature`` 0 is greedy. ``num_beams`` above 1 is beam search (greedy only, one answer). ``seed`` None draws
    a fresh one; with a seed, answer i of n depends on (seed, i) and not on what else runs.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.max_new_tokens < 1 or self.n < 1 or self.num_beams < 1:
            raise RequestError("max_new_tokens, n and num_beams must be at least 1")
        if not self.temperature >= 0 or not 0 <= self.top_p <= 1:
            raise RequestError("temperature must be at least 0 and top_p between 0 and 1")
        if self.num_beams > 1 and (self.temperature > 0 or self.n > 1):
            raise RequestError("beam search (num_beams > 1) takes temperature 0 and n 1")
        if any(not stop for stop in self.stop):
            raise RequestError("stop strings must not be empty")


@dataclass(frozen=True)
class Request:
    """A question about some recordings.

    ``features``: log-mel, float32 (recordings, 64, 218); no recordings asks the language model alone.
    ``dataset`` picks the published domain sentence; None lets the processor choose it by the words of the question.
    ``begun``: tokens that each of the ``sampling.n`` answers has already, from another engine with the same model: they
    go on from there, and only what is new is told. With the same seed they end as they would have there.
    """

    instruction: str
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 64, 218), np.float32))
    dataset: str | None = None
    sampling: Sampling = Sampling()
    begun: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """Check the shape here, where the caller can still be named."""
        if self.features.ndim != 3 or self.features.shape[1:] != (64, 218):
            raise RequestError(f"features must be (recordings, 64, 218), not {self.features.shape}")
        if self.begun and (len(self.begun) != self.sampling.n or self.sampling.num_beams > 1):
            raise RequestError("begun takes the tokens of each of n answers, and no beam search")


@dataclass(frozen=True)
class Completion:
    """One answer. Token counts include the end-of-sequence token."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Delta:
    """What has been added to answer ``index`` of n; its last delta has a finish reason. Counts are running totals.

    ``tokens``: those made since the last delta, of which ``text`` is what is certain. An answer that had ended before
    it was taken up again (``Request.begun``) gives one delta more, its last, with nothing in it.
    """

    index: int
    text: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[int, ...] = ()


class Engine(Protocol):
    """Generates answers. Thread-safe; each request is answered as if it were alone."""

    def generate_many(self, requests: list[Request]) -> list[list[Completion]]:
        """Offline: answers in the order of ``requests``, ``sampling.n`` of each.

        Raises:
            RequestError: one of the requests cannot be answered (its position is named).
        """
        ...

    def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Online: deltas as tokens come. Closing the iterator stops the generation at the next token.

        Raises:
            RequestError: this request cannot be answered.
            EngineBusy: the waiting queue is full.
            EngineDead: there is nothing left that could answer.
        """
        ...

    def close(self) -> None:
        """Stop what runs and free the worker."""
        ...


def collect(deltas: list[Delta], n: int) -> list[Completion]:
    """Put the deltas of a whole stream together into its ``n`` answers."""
    texts, last = [""] * n, dict[int, Delta]()
    for delta in deltas:
        texts[delta.index] += delta.text
        last[delta.index] = delta
    ends = [last[index] for index in range(n)]
    return [
        Completion(text, end.finish_reason or "stop", end.prompt_tokens, end.completion_tokens)
        for text, end in zip(texts, ends, strict=True)
    ]
