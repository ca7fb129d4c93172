"""From a stream of samples to the batches of one worker.

Ranks take part in every step together, so a rank whose rows run out sooner goes on with batches that train nothing
until the others are done. What a step consumed is known by its batch's sample ids: see ``corpus.ledger``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset

Row = dict[str, Any]
Batch = dict[str, Any]


@dataclass(frozen=True)
class BatchPlan:
    """How rows become batches.

    Attributes:
        batch_size: rows a batch.
        tokens_per_batch: padded tokens a batch; wins over batch_size. None: count rows.
        window: batches' worth of rows sorted by length together, so that little is padding.
    """

    batch_size: int
    tokens_per_batch: int | None = None
    window: int = 4

    def steps(self, rows: int, mean_tokens: float) -> int:
        """Batches that ``rows`` rows give: exact for batch_size, an estimate for tokens_per_batch."""
        per_batch = self.tokens_per_batch / mean_tokens if self.tokens_per_batch else float(self.batch_size)
        return -int(-rows // max(per_batch, 1.0))

    def batches(self, rows: Iterable[Row]) -> Iterator[list[Row]]:
        """Group rows of like length; the order of rows decides everything, so the same rows give the same batches."""
        rows = iter(rows)
        size = self.window * self.batch_size
        while window := list(islice(rows, size)):
            window.sort(key=lambda row: len(row["input_ids"]))
            yield from _interleave(list(self._cut(window)))

    def _cut(self, rows: list[Row]) -> Iterator[list[Row]]:
        batch: list[Row] = []
        for row in rows:
            if batch and self._full(batch, row):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _full(self, batch: list[Row], row: Row) -> bool:
        if self.tokens_per_batch is None:
            return len(batch) >= self.batch_size
        return (len(batch) + 1) * len(row["input_ids"]) > self.tokens_per_batch


def _interleave(batches: list[list[Row]]) -> list[list[Row]]:
    """Long and short batches in turn: sorted order would be a schedule by length."""
    half = (len(batches) + 1) // 2
    mixed: list[list[Row]] = []
    for index in range(half):
        mixed.append(batches[index])
        if half + index < len(batches):
            mixed.append(batches[half + index])
    return mixed


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
