"""One answer in the making: tokens to text, stop strings, finish reason."""

from __future__ import annotations

from collections.abc import Callable

from stetholm.serving.engine import Completion, Delta, FinishReason
from stetholm.serving.prompts import Prompt

UNFINISHED = "\ufffd"
"""What a tokenizer writes for a character of which some bytes are still to come."""


def held_back(text: str, stops: tuple[str, ...]) -> int:
    """Characters at the end of ``text`` that may be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0


def first_stop(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the earliest stop string begins in ``text``."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(places, default=None)


class Row:
    """Answer ``index`` of a prompt. Feed tokens with :meth:`push` until :attr:`done`.

    What its request says it has already is in it from the beginning, and was sent: it may be done at once.
    """

    def __init__(
        self,
        prompt: Prompt,
        index: int,
        decode: Callable[[list[int]], str],
        eos: frozenset[int],
        sink: Callable[[Delta], None] | None = None,
    ) -> None:
        """``decode`` turns ids into text; ``sink`` takes each delta as it comes (in the generating thread)."""
        self.prompt, self.index = prompt, index
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.cancelled = False
        self.sink = sink
        self._decode, self._eos = decode, eos
        self._ids: list[int] = []
        self._new: list[int] = []
        """Tokens since the last delta."""
        self._count = 0
        self._sent = 0
        begun = prompt.request.begun
        self.begun = begun[index] if begun else ()
        if self.begun:
            self._take_up()

    @property
    def left(self) -> int:
        """Tokens that it may get beyond those that it began with."""
        return self.prompt.max_new_tokens - len(self.begun)

    @property
    def done(self) -> bool:
        """No more tokens are wanted."""
        return self.cancelled or self.finish_reason is not None

    def push(self, token: int) -> None:
        """Take the next token; send what is certain of the text."""
        if self.done:
            return
        self._count += 1
        self._new.append(token)
        ended = token in self._eos
        if not ended:
            self._ids.append(token)
            self.text = self._decode(self._ids)
        stop = first_stop(self.text, self.prompt.request.sampling.stop)
        if stop is not None:
            self.text = self.text[:stop]
        if ended or stop is not None:
            self.finish_reason = "stop"
        elif self._count >= self.prompt.max_new_tokens:
            self.finish_reason = "length"
        self._send()

    def _take_up(self) -> None:
        """Be as after ``begun``, without telling anything: where it ended, that alone is told again."""
        sink, self.sink = self.sink, None
        *before, last = self.begun
        self._ids, self._count, self.text = before, len(before), self._decode(before)
        self.push(last)
        self._new, self._sent, self.sink = [], self._certain(), sink
        if self.done:
            self._send()

    def _certain(self) -> int:
        """Characters that no later token can change (all of them at the end)."""
        if self.finish_reason is not None:
            return len(self.text)
        end = len(self.text.rstrip(UNFINISHED))
        return end - held_back(self.text[:end], self.prompt.request.sampling.stop)

    def _send(self) -> None:
        """Pass on what is certain."""
        if self.sink is None:
            return
        end = self._certain()
        new = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        if new or self.finish_reason:
            made, self._new = tuple(self._new), []
            self.sink(Delta(self.index, new, self.finish_reason, len(self.prompt.ids), self._count, made))

    def completion(self) -> Completion:
        """The whole answer; call it when done."""
        return Completion(self.text, self.finish_reason or "stop", len(self.prompt.ids), self._count)
