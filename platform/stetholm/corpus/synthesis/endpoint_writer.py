"""The writer behind an OpenAI-compatible endpoint.

The first question is asked alone: refused keys or an unknown model show before anything else is paid. Each place of
``synthesize.concurrency`` asks again only when its last answer is in storage, so a killed job loses at most the answers
that were on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from stetholm.completions import Completions, EndpointError, NotAnswered, for_all
from stetholm.corpus.synthesis.cost import estimate_tokens, used_tokens
from stetholm.corpus.synthesis.store import Answer
from stetholm.corpus.synthesis.writers import Ask, Keep
from stetholm.settings import SynthesizeSettings

SETTING = "synthesize"
TRIALS = 3
"""Questions that are asked one by one until one is answered."""


class EndpointWriter:
    """Asks an endpoint; see :class:`stetholm.corpus.synthesis.writers.Writer`."""

    free = False

    def __init__(self, settings: SynthesizeSettings) -> None:
        """Make it; nothing is sent yet.

        Raises:
            UserError: no base_url or no model.
        """
        Completions(settings, SETTING)  # it checks them
        self._settings = settings
        self._pace = TokenPace(settings.tokens_per_minute)
        self._tried = False

    @property
    def name(self) -> str:
        """The endpoint's name of the model."""
        return str(self._settings.model)

    def write(self, asks: Sequence[Ask], keep: Keep) -> dict[str, str]:
        """See :meth:`Writer.write`."""
        unanswered: dict[str, str] = {}
        first = 0
        while not self._tried and first < min(TRIALS, len(asks)):
            unanswered |= self._all(asks[first : first + 1], keep)
            first += 1
            self._tried = asks[first - 1].key not in unanswered
        if not self._tried and first == TRIALS:
            reason = next(iter(unanswered.values()))
            raise EndpointError(
                f"{SETTING}: {self._settings.base_url}: no answer to the first {TRIALS} questions: {reason}"
            )
        return unanswered | self._all(asks[first:], keep)

    def _all(self, asks: Sequence[Ask], keep: Keep) -> dict[str, str]:
        unanswered: dict[str, str] = {}
        keeper = _Keeper(keep)

        async def work(complete: Completions, ask: Ask) -> None:
            await self._pace.wait(estimate_tokens(ask.messages) + self._settings.max_new_tokens)
            try:
                said = await complete(ask.messages, **self._fields())
            except NotAnswered as reason:
                if not (reason.refused and self._tried):  # what refuses the first question may refuse them all
                    raise
                await keeper(Answer(ask.key, "", refused=str(reason)))  # it would be refused, and perhaps paid, again
            else:
                await keeper(Answer(ask.key, said.text, *used_tokens(ask.messages, said)))

        def on_done(place: int, result: NotAnswered | None) -> None:
            if result is not None:
                unanswered[asks[place].key] = str(result)

        if asks:
            try:
                for_all(self._settings, asks, work, on_done, SETTING)
            finally:
                keeper.rest()
        return unanswered

    def _fields(self) -> dict[str, Any]:
        return {"temperature": self._settings.temperature, "max_tokens": self._settings.max_new_tokens}


class _Keeper:
    """Writes answers to storage together with those that came while the last ones were being written."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._pending: list[Answer] = []
        self._writing = asyncio.Lock()

    async def __call__(self, answer: Answer) -> None:
        """Return when ``answer`` is safe."""
        self._pending.append(answer)
        # What is paid is written even while the other questions are being given up.
        await asyncio.shield(self._flush())

    def rest(self) -> None:
        """Write what came while the others were being given up. Call it when no coroutine runs any more."""
        batch, self._pending = self._pending, []
        if batch:
            self._keep(batch)

    async def _flush(self) -> None:
        async with self._writing:
            batch, self._pending = self._pending, []
            if batch:
                await asyncio.to_thread(self._keep, batch)


class TokenPace:
    """Spreads tokens over time: a question waits until those before it have used up their share of the minute."""

    def __init__(self, per_minute: float | None) -> None:
        self._per_minute = per_minute
        self._free_at = 0.0

    async def wait(self, tokens: int) -> None:
        """Wait for room for ``tokens``, and take it."""
        if self._per_minute is None:
            return
        now = asyncio.get_running_loop().time()
        start = max(now, self._free_at)
        self._free_at = start + 60.0 * tokens / self._per_minute
        await asyncio.sleep(start - now)
