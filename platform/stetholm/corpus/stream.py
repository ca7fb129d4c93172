"""The streaming reader: shards in object storage become rows with features, exactly once an epoch.

    stream = CorpusStream(storage, uri, split="train", seed=0, epochs=4, rank=0, world_size=2, ledger=ledger)
    for row in stream.rows():
        features = read_features(row)  # (recordings, 64, 218)

Each rank runs a stream of its own. The order depends on (seed, epoch) alone; :mod:`stetholm.corpus.plan` says which
rank reads what. Given the ledger of what has been consumed, the rest of the epoch is dealt anew among the ranks.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset, ExecutionResources, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from stetholm.corpus.datasource import (
    BLOCK_BYTES,
    IndexRow,
    PlanDatasource,
    ShardReader,
    SoundColumns,
    data_cores,
    quiet,
    row_groups,
)
from stetholm.corpus.derived import Derived
from stetholm.corpus.features import Cached, Featurise, read_features
from stetholm.corpus.ledger import Ledger
from stetholm.corpus.manifest import CorpusError, Manifest
from stetholm.corpus.plan import Piece, Plan, drop_rows
from stetholm.ray_session import closed_with_session
from stetholm.settings import Augmentation
from stetholm.storage import Storage

__all__ = ["COLUMNS", "CorpusStream", "read_features"]

COLUMNS = ("sample_id", "recording_ids", "instruction", "response", "task", "dataset", "distribution", "patient")
"""Columns of every row, besides ``epoch``, ``recordings`` and ``features``."""

SOUNDS = ("audio", *Derived._fields)
"""Columns that hold recordings."""

CPUS_PER_TASK = 0.25
"""Little, so that reading finds a place beside training workers that hold nearly all CPUs."""
BYTES_PER_TASK = 64 * 2**20
"""Of the object store: what a task has made, and what waits to be read."""
MEMORY = 768 * 2**20
STALL_SECONDS = 240.0
"""Without any progress for so long, which is beyond the storage's patience, reading starts again where it is. (It may
also be that the consumer took so long over one block; then nothing is lost but a second.)"""
MAX_STALLS = 3

logger = logging.getLogger(__name__)
_INDEX_THREADS = 8


class CorpusStream:
    """Rows of one split of a corpus, for one rank.

    Args:
        storage: where the corpus lies.
        corpus_uri: its URI.
        split: ``train``, ``val``, ``test`` or ``inference``.
        seed: of order, crops and augmentation.
        epochs: how often each row comes, epoch after epoch.
        rank: whose rows, of ``world_size`` ranks.
        world_size: how many ranks share the rows.
        training: shuffle and crop at random; else storage order and the first 7 s.
        ledger: what has been consumed already and is left out; the same (merged) one on every rank.
        dealt: what had been consumed when the rows were dealt to these very ranks; they then go on with their own rows
            as if they had never stopped. Default: ``ledger``, and the rest is dealt anew.
        extra_columns: further columns to read, e.g. ``audio``, ``sampling_rate`` or those of preference pairs.
        prepare: called with each row (without its features) inside the Ray tasks; what it returns is added to it.
        augmentation: how waveforms change (with ``training`` only); see :mod:`stetholm.audio.augment`.
        from_waveforms: with ``training``, decode and transform each clip even where no augmentation asks for it. Crops
            then start at any sample; of log-mels that are kept they start on a frame.
        tasks: only rows of these tasks; None: all.
        distributions: only rows of these, ``ID`` or ``OOD``; None: all.
        memory: bytes of the object store that the stream may take, in pieces of 64 MiB; two at least.

    Raises:
        CorpusError: there is no corpus, nothing in the split, or no such column.
    """

    def __init__(
        self,
        storage: Storage,
        corpus_uri: str,
        *,
        split: str,
        seed: int,
        epochs: int = 1,
        rank: int = 0,
        world_size: int = 1,
        training: bool = True,
        ledger: Ledger | None = None,
        dealt: Ledger | None = None,
        extra_columns: Sequence[str] = (),
        prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        augmentation: Augmentation = "none",
        from_waveforms: bool = False,
        tasks: Collection[str] | None = None,
        distributions: Collection[str] | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.manifest = Manifest.load(storage, corpus_uri)
        self._split = self.manifest.split(split)
        self._rank, self._world_size = rank, world_size
        self._memory = memory
        extra = tuple(extra_columns)
        columns = dict.fromkeys((*COLUMNS, "seconds", *extra))
        self._reader = ShardReader(
            storage,
            corpus_uri.rstrip("/"),
            tuple(columns),
            sound_columns(training, from_waveforms or augmentation != "none"),
        )
        self._featurise = Featurise(
            seed=seed,
            training=training,
            augmentation=augmentation,
            drop=tuple({*Derived._fields, "seconds"} - set(extra)),
            prepare=Cached(prepare) if prepare is not None else None,
        )
        self._require(columns)
        self._groups, sizes = row_groups(self._split)
        wanted = {"task": tasks, "distribution": distributions}
        self._plan = Plan(
            sizes,
            seed=seed,
            epochs=epochs,
            world_size=world_size,
            shuffle=training,
            consumed=self._left_out(ledger, epochs, wanted),
            dealt=None if dealt is None else self._left_out(dealt, epochs, wanted),
        )

    def rows_of(self, rank: int) -> int:
        """Rows that ``rank`` yields in all. Ranks differ by at most one row an epoch."""
        return self._plan.rows_of(rank)

    def rows_by_epoch(self, rank: int) -> list[int]:
        """Rows that ``rank`` yields in each epoch."""
        return self._plan.rows_by_epoch(rank)

    def outline(self) -> Iterator[dict[str, Any]]:
        """The rows that :meth:`rows` gives, in that order, with their texts alone: no sound is read."""
        columns = [name for name in self._reader.columns if name not in SOUNDS]
        with ThreadPoolExecutor(_INDEX_THREADS) as pool:
            groups = list(pool.map(lambda group: self._reader.texts(group, columns), self._groups))
        for piece in self._plan.pieces(self._rank):
            for row in groups[piece.group].take(pa.array(piece.rows)).to_pylist():
                yield row | {"epoch": piece.epoch, "recordings": len(row["recording_ids"])}

    def dataset(self) -> Dataset:
        """The rows as a Ray Data dataset that streams when it is iterated."""
        return self._dataset(list(self._plan.pieces(self._rank)))

    def rows(self) -> Generator[dict[str, Any]]:
        """The rows, in the plan's order. ``features`` holds float32 in a buffer: :func:`read_features`."""
        return closed_with_session(self._rows())

    def _rows(self) -> Generator[dict[str, Any]]:
        left = deque(self._plan.pieces(self._rank))
        stalls = 0
        while left:
            try:
                for table in self._tables(list(left)):
                    stalls = 0
                    drop_rows(left, len(table))
                    for row, features in zip(
                        table.drop_columns(["features"]).to_pylist(), table["features"], strict=True
                    ):
                        yield row | {"features": features.as_buffer()}
            except ExecutionTimeoutError:
                stalls += 1
                if stalls > MAX_STALLS:
                    raise
                logger.warning("reading stood still for %.0f s: starting it again where it is", STALL_SECONDS)

    def _tables(self, pieces: Sequence[Piece]) -> Iterator[pa.Table]:
        dataset = self._dataset(pieces)
        # Ray Data has been seen to lose a task, whose blocks it then awaits for ever.
        dataset.context.execution_no_progress_timeout_s = STALL_SECONDS
        with contextlib.closing(
            iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))  # type: ignore[type-var]
        ) as blocks:
            yield from cast(Iterator[pa.Table], blocks)

    def _dataset(self, pieces: Sequence[Piece]) -> Dataset:
        source = PlanDatasource(self._reader, self._groups, pieces)
        if not source.tasks:
            return ray.data.from_arrow(pa.table({"sample_id": pa.array([], pa.string())}))
        tasks = min(self._tasks(), source.tasks)
        limits = ExecutionResources(cpu=tasks * CPUS_PER_TASK, gpu=0, object_store_memory=tasks * BYTES_PER_TASK)
        # Both operators ask for the same, so that Ray Data runs them as one task and no audio changes hands.
        read = ray.data.read_datasource(
            source, override_num_blocks=source.tasks, num_cpus=CPUS_PER_TASK, compute=TaskPoolStrategy(tasks)
        )
        read = quiet(read, preserve_order=True, limits=limits)
        read.context.target_max_block_size = BLOCK_BYTES
        return read.map_batches(
            self._featurise.__call__,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=CPUS_PER_TASK,
            compute=TaskPoolStrategy(tasks),
            zero_copy_batch=True,
        )

    def _require(self, columns: Iterable[str]) -> None:
        there = self._reader.column_names(self._split.shards[0])
        for column in columns:
            if column not in there:
                raise CorpusError(f"{self._reader.corpus_uri} has no column {column!r}; it has: {', '.join(there)}")

    def _tasks(self) -> int:
        """Tasks at a time: this rank's share of the cores, within memory. More would share the cores' caches."""
        share = data_cores() / self._world_size
        return int(np.clip(share, 2, max(2, self._memory // BYTES_PER_TASK)))

    def _left_out(
        self, ledger: Ledger | None, epochs: int, wanted: Mapping[str, Collection[str] | None]
    ) -> dict[int, dict[int, np.ndarray]]:
        """Positions, by epoch and row group, of the samples that the ledger names and of those not wanted."""
        ledger = ledger or Ledger()
        counts = self._split.counts
        choices = {name: set(values) for name, values in wanted.items() if values is not None}
        choices = {name: values for name, values in choices.items() if not counts.get(name, {"": 0}).keys() <= values}
        if not choices and not any(epoch < epochs for epoch in ledger.epochs):
            return {}
        groups = self._index()
        unwanted = {
            row.sample_id
            for group in groups
            for row in group
            if any(getattr(row, name) not in values for name, values in choices.items())
        }
        ids = [[row.sample_id for row in group] for group in groups]
        untouched = _positions(ids, frozenset(unwanted))  # the same in all epochs of which nothing is consumed
        seen = {epoch: _positions(ids, ledger.seen(epoch) | unwanted) for epoch in ledger.epochs if epoch < epochs}
        return {epoch: seen.get(epoch, untouched) for epoch in range(epochs)}

    def _index(self) -> list[list[IndexRow]]:
        """The rows of each row group, in storage order: three columns of every shard are read."""
        with ThreadPoolExecutor(_INDEX_THREADS) as pool:
            shards = pool.map(self._reader.index, self._split.shards)
            groups = []
            for shard, rows in zip(self._split.shards, shards, strict=True):
                ends = np.cumsum(shard.row_groups).tolist()
                groups += [rows[end - count : end] for end, count in zip(ends, shard.row_groups, strict=True)]
        return groups


def sound_columns(training: bool, from_waveforms: bool) -> SoundColumns:
    """The columns of recordings that a stream needs."""
    if not training:
        return SoundColumns(("log_mel",))
    return SoundColumns(("audio_16khz",)) if from_waveforms else SoundColumns(by_length=True)


def _positions(groups: Sequence[Sequence[str]], seen: frozenset[str]) -> dict[int, np.ndarray]:
    found = {
        group: np.array([place for place, sample in enumerate(ids) if sample in seen], np.int64)
        for group, ids in enumerate(groups)
    }
    return {group: places for group, places in found.items() if len(places)}
