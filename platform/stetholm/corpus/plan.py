"""Which rank reads which rows, in which order: pure arithmetic on row-group sizes.

An epoch is one long row of samples: the row groups in an order seeded by (seed, epoch), the rows of each in an order
seeded by (seed, epoch, group), without those already consumed. It is cut into ``world_size`` stretches of equal
length, one a rank; a row group on a border is read by both its ranks, each taking its own rows. So every sample
that is left falls to exactly one rank, whatever was consumed before and under whatever number of ranks.

Where the same ranks go on, the cut stays where it was: each leaves out what has been consumed since then of its own
stretch, and goes on as if it had never stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

Consumed = Mapping[int, Mapping[int, np.ndarray]]
"""epoch -> row group -> positions in it that have been consumed."""


@dataclass(frozen=True)
class Piece:
    """Rows of one row group, in the order in which a rank yields them."""

    epoch: int
    group: int
    """Index into the plan's row groups."""
    rows: np.ndarray
    """Positions in the row group, int64."""


class Plan:
    """The rows of every rank and epoch.

    Args:
        sizes: rows of each row group of the split, in storage order.
        seed: of the order.
        epochs: number of epochs, from 0.
        world_size: number of ranks.
        shuffle: False keeps storage order (evaluation).
        consumed: rows to leave out, per epoch and row group.
        dealt: those of them that were left out when the epochs were cut into stretches; default: all of them, so that
            the epochs are cut anew.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        seed: int,
        epochs: int = 1,
        world_size: int = 1,
        shuffle: bool = True,
        consumed: Consumed | None = None,
        dealt: Consumed | None = None,
    ) -> None:
        if epochs < 0 or world_size < 1:
            raise ValueError(f"epochs {epochs} and world_size {world_size}: need at least 0 and 1")
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._seed, self._shuffle = seed, shuffle
        self._epochs, self._world_size = epochs, world_size
        self._consumed = consumed or {}
        self._dealt = self._consumed if dealt is None else dealt

    def rows_of(self, rank: int) -> int:
        """Rows that ``rank`` yields over all epochs. Ranks differ by at most one row an epoch."""
        return sum(self.rows_by_epoch(rank))

    def rows_by_epoch(self, rank: int) -> list[int]:
        """Rows that ``rank`` yields in each epoch."""
        if self._dealt is self._consumed:
            return [stop - start for start, stop in (self._stretch(rank, epoch) for epoch in range(self._epochs))]
        return [sum(len(piece.rows) for piece in self._epoch(rank, epoch)) for epoch in range(self._epochs)]

    def pieces(self, rank: int) -> Iterator[Piece]:
        """What ``rank`` reads, in order; epochs one after the other. No piece is empty."""
        for epoch in range(self._epochs):
            yield from self._epoch(rank, epoch)

    def _epoch(self, rank: int, epoch: int) -> Iterator[Piece]:
        start, stop = self._stretch(rank, epoch)
        left = self._left(epoch)
        before = 0
        for group in self._order(epoch):
            after = before + int(left[group])
            if after > start and before < stop:
                dealt = _without(self._rows(epoch, int(group)), self._dealt, epoch, int(group))
                rows = _without(dealt[max(start - before, 0) : stop - before], self._consumed, epoch, int(group))
                if len(rows):
                    yield Piece(epoch, int(group), rows)
            before = after

    def _stretch(self, rank: int, epoch: int) -> tuple[int, int]:
        """First and one past the last of the epoch's rows that fall to ``rank``."""
        if not 0 <= rank < self._world_size:
            raise ValueError(f"rank {rank} of {self._world_size}")
        # Another rank gets the odd row in the next epoch, so that over several epochs all have the same.
        place = (rank + epoch) % self._world_size
        total = int(self._left(epoch).sum())
        return total * place // self._world_size, total * (place + 1) // self._world_size

    def _left(self, epoch: int) -> np.ndarray:
        """Rows of each row group that are to be dealt."""
        left = self._sizes.copy()
        for group, rows in self._dealt.get(epoch, {}).items():
            left[group] -= len(rows)
        return left

    def _order(self, epoch: int) -> np.ndarray:
        count = len(self._sizes)
        return np.random.default_rng([self._seed, epoch]).permutation(count) if self._shuffle else np.arange(count)

    def _rows(self, epoch: int, group: int) -> np.ndarray:
        """All positions in ``group``, in the epoch's order."""
        size = int(self._sizes[group])
        return np.random.default_rng([self._seed, epoch, group]).permutation(size) if self._shuffle else np.arange(size)


def _without(rows: np.ndarray, gone: Consumed, epoch: int, group: int) -> np.ndarray:
    out = gone.get(epoch, {}).get(group)
    return rows if out is None else rows[~np.isin(rows, out)]


def drop_rows(pieces: deque[Piece], count: int) -> None:
    """Take the first ``count`` rows out of ``pieces``, which are those of a plan in order."""
    while count:
        rows = pieces[0].rows
        if len(rows) > count:
            pieces[0] = replace(pieces[0], rows=rows[count:])
            return
        count -= len(rows)
        pieces.popleft()
