"""From a stream of samples to the batches of one worker.

Ranks take part in every step together, so a rank whose rows run out sooner goes on with batches that train nothing
until the others are done. What a step consumed is known by its batch's sample ids: see ``corpus.ledger``.
"""

from __future__ import annotations

import time
import zlib
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

Row = dict[str, Any]
Batch = dict[str, Any]

USUAL_TOKENS = 64
"""Of a sample; only says how many rows make some batches' worth where batches are counted in tokens."""
MOST_BUFFERED = 2048
"""Rows: 110 MB of spectrograms."""


def sample_tokens(row: Row) -> int:
    """Tokens of a sample in a step, as long as nothing longer pads it; a pair stands there in three rows."""
    rejected = row.get("rejected_input_ids")
    own = len(row["input_ids"])
    return own if rejected is None else 3 * max(own, len(rejected))


@dataclass(frozen=True)
class BatchPlan:
    """How rows become batches of like length.

    So many rows are kept at hand. A batch is the row that has waited longest and those nearest to it in length, as
    many as fit; then rows follow from the stream, in its order. So the batches to come depend on nothing but the rows
    to come and their order: a run that goes on from a checkpoint makes the batches that it would have made. An epoch's
    rows are used up before the next one's are.

    Attributes:
        batch_size: rows a batch.
        tokens_per_batch: padded tokens a batch; wins over batch_size. None: count rows.
        window: batches' worth of rows at hand.
    """

    batch_size: int
    tokens_per_batch: int | None = None
    window: int = 16

    def steps(self, rows: Iterable[int]) -> int:
        """Batches that so many ``rows`` of each epoch give, where batches are counted in rows."""
        return sum(-(-count // self.batch_size) for count in rows)

    def batches(self, rows: Iterable[Row]) -> Iterator[list[Row]]:
        """Group rows of like length. A batch exceeds ``tokens_per_batch`` only where one row alone does."""
        for _, epoch in groupby(rows, key=lambda row: row.get("epoch", 0)):
            yield from self._epoch(epoch)

    def capacity(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many rows fit into a batch whose longest takes so many ``tokens``, at least one."""
        if self.tokens_per_batch is None:
            return np.full(len(tokens), self.batch_size)
        return np.maximum(self.tokens_per_batch // np.maximum(tokens, 1), 1)

    @property
    def buffered(self) -> int:
        """Rows at hand."""
        usual = self.batch_size if self.tokens_per_batch is None else self.tokens_per_batch // USUAL_TOKENS
        return max(self.batch_size, min(self.window * max(usual, 1), MOST_BUFFERED))

    def _epoch(self, rows: Iterator[Row]) -> Iterator[list[Row]]:
        buffer = _Buffer(self)
        buffer.add(islice(rows, self.buffered))
        while len(buffer) == self.buffered:
            batch = buffer.take()
            yield batch
            buffer.add(islice(rows, len(batch)))
        yield from buffer.rest()


class _Buffer:
    """Rows sorted by length that know which has waited longest."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan, self._count = plan, 0
        self._sorted: list[tuple[int, int, Row]] = []
        self._waiting: dict[int, int] = {}
        """Tokens of the rows at hand by their numbers, the oldest first."""

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            tokens = sample_tokens(row)
            insort(self._sorted, (tokens, self._count, row))
            self._waiting[self._count] = tokens
            self._count += 1

    def take(self) -> list[Row]:
        """The oldest row and its neighbours."""
        number, tokens = next(iter(self._waiting.items()))
        low, high = self._around(bisect_left(self._sorted, (tokens, number)))
        taken = self._sorted[low:high]
        del self._sorted[low:high]
        for _, other, _ in taken:
            del self._waiting[other]
        return [row for _, _, row in taken]

    def rest(self) -> list[list[Row]]:
        """What is left in batches, cut in order of length, but not given in that order: it would be a schedule."""
        batches: list[list[Row]] = []
        for tokens, _, row in self._sorted:
            if not batches or len(batches[-1]) >= int(self._plan.capacity(np.array([tokens]))[0]):
                batches.append([])
            batches[-1].append(row)
        # By what stands in it, so that the order stays when some are gone.
        return sorted(batches, key=lambda batch: zlib.crc32(str(batch[0].get("sample_id")).encode()))

    def _around(self, place: int) -> tuple[int, int]:
        """First and one past the last of the neighbours of ``place`` that fill a batch best."""
        most = int(self._plan.capacity(np.array([self._sorted[place][0]]))[0])
        start = max(0, place - most + 1)
        tokens = np.array([tokens for tokens, _, _ in self._sorted[start : place + most]])
        sums = np.concatenate([[0], np.cumsum(tokens)])
        longest = np.arange(place - start, len(tokens))
        rows = self._plan.capacity(tokens[longest])
        first = np.maximum(longest + 1 - rows, 0)
        room = np.maximum(self._plan.tokens_per_batch or rows * tokens[longest], tokens[longest])
        # Counted in rows, a batch is always full.
        allowed = (first <= place - start) & ((self._plan.tokens_per_batch is not None) | (longest + 1 >= rows))
        best = int(np.where(allowed, (sums[longest + 1] - sums[first]) / room, -1.0).argmax())
        return start + int(first[best]), start + int(longest[best]) + 1


class StepBatches(IterableDataset[Batch]):
    """The batches of one rank as the Trainer wants them; all ranks' streams end at the same step.

    Args:
        rows: makes the stream of this rank's rows; called once.
        plan: how rows become batches.
        collate: rows to tensors; no rows to a batch that trains nothing.
        any_left: True if any rank passes True; a collective call, made once a step.
    """

    def __init__(
        self,
        rows: Callable[[], Iterable[Row]],
        plan: BatchPlan,
        collate: Callable[[list[Row]], Batch],
        any_left: Callable[[bool], bool],
    ) -> None:
        super().__init__()
        self._rows, self._plan, self._collate, self._any_left = rows, plan, collate, any_left
        self.at_end = False
        """True once the last batch of all ranks has been given."""
        self.start_seconds = 0.0
        """How long the first rows took: the stream starts."""
        self.waits: list[float] = []
        """How long each step since then has waited for rows and for making a batch of them, in seconds."""

    def __iter__(self) -> Iterator[Batch]:
        started = time.perf_counter()
        groups = self._plan.batches(self._rows())
        group = next(groups, None)
        self.start_seconds = time.perf_counter() - started
        self.at_end = not self._any_left(group is not None)
        while not self.at_end:
            asked = time.perf_counter()
            ahead = next(groups, None)
            rows = group or []
            batch = self._collate(rows) | {"samples": [(row["epoch"], row["sample_id"]) for row in rows]}
            self.waits.append(time.perf_counter() - asked)
            self.at_end = not self._any_left(ahead is not None)
            yield batch
            group = ahead
