"""How far the answers to a request have come, so that another engine with the same model can end them."""

from __future__ import annotations

import secrets
from dataclasses import replace

from stetholm.serving.engine import Delta, Request


class Progress:
    """Of one request. Feed it with every delta that an engine gives."""

    def __init__(self, request: Request) -> None:
        """A request that samples gets a seed, if it has none: with it whoever goes on draws as it would have been."""
        sampling = request.sampling
        if sampling.temperature > 0 and sampling.seed is None:
            request = replace(request, sampling=replace(sampling, seed=secrets.randbits(63)))
        self._request = request
        self._made: list[list[int]] = [[] for _ in range(sampling.n)]
        self._last: dict[int, Delta] = {}

    def news(self, delta: Delta) -> bool:
        """Take the next delta; whether it says more than was known: an answer's end is told again to who goes on."""
        before = self._last.get(delta.index)
        if before is not None and before.finish_reason is not None:
            return False
        self._made[delta.index] += delta.tokens
        self._last[delta.index] = delta
        return True

    @property
    def begun(self) -> bool:
        """Whether anything has come."""
        return bool(self._last)

    @property
    def over(self) -> bool:
        """Whether all answers have ended."""
        return sum(delta.finish_reason is not None for delta in self._last.values()) == len(self._made)

    @property
    def known(self) -> bool:
        """Whether the deltas told all of their tokens; else nobody can go on."""
        return all(delta.completion_tokens == len(self._made[index]) for index, delta in self._last.items())

    @property
    def rest(self) -> Request:
        """What is still to be asked: the request, and what its answers have already."""
        return replace(self._request, begun=tuple(map(tuple, self._made))) if self.begun else self._request
