"""The streaming reader: shards in object storage become rows with features, exactly once an epoch.

    stream = CorpusStream(storage, uri, split="train", seed=0, epochs=4, rank=0, world_size=2, ledger=ledger)
    for row in stream.rows():
        features = read_features(row)  # (recordings, 64, 218)

Each rank runs a stream of its own. The order depends on (seed, epoch) alone; :mod:`stetholm.corpus.plan` says which
rank reads what. Given the ledger of what has been consumed, the rest of the epoch is dealt anew among the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset, ExecutionResources, TaskPoolStrategy

from stetholm.corpus.datasource import PlanDatasource, ShardReader, SoundColumns, data_cpus, quiet, row_groups
from stetholm.corpus.features import Cached, Featurise, read_features
from stetholm.corpus.ledger import Ledger
from stetholm.corpus.manifest import CorpusError, Manifest
from stetholm.corpus.plan import Plan
from stetholm.ray_session import closed_with_session
from stetholm.settings import Augmentation
from stetholm.storage import Storage

__all__ = ["COLUMNS", "CorpusStream", "read_features"]

COLUMNS = ("sample_id", "recording_ids", "instruction", "response", "task", "dataset", "distribution", "patient")
"""Columns of every row, besides ``epoch``, ``recordings`` and ``features``."""

CPUS_PER_TASK = 0.25
"""Little, so that reading finds a place beside training workers that hold nearly all CPUs."""
MAX_TASKS = 16
BYTES_PER_TASK = 48 * 2**20
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
        extra_columns: further columns to read, e.g. ``audio``, ``sampling_rate`` or those of preference pairs.
        prepare: called with each row (without its features) inside the Ray tasks; what it returns is added to it.
        augmentation: how waveforms change (with ``training`` only); see :mod:`stetholm.audio.augment`.
        tasks: only rows of these tasks; None: all.

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
        extra_columns: Sequence[str] = (),
        prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        augmentation: Augmentation = "none",
        tasks: Collection[str] | None = None,
    ) -> None:
        self.manifest = Manifest.load(storage, corpus_uri)
        self._split = self.manifest.split(split)
        self._rank, self._world_size = rank, world_size
        extra = tuple(extra_columns)
        columns = dict.fromkeys((*COLUMNS, "seconds", *extra))
        self._reader = ShardReader(
            storage, corpus_uri.rstrip("/"), tuple(columns), sound_columns(training, augmentation)
        )
        self._featurise = Featurise(
            seed=seed,
            training=training,
            augmentation=augmentation,
            drop=tuple({"audio_16khz", "log_mel", "seconds"} - set(extra)),
            prepare=Cached(prepare) if prepare is not None else None,
        )
        self._require(columns)
        self._groups, sizes = row_groups(self._split)
        self._plan = Plan(
            sizes,
            seed=seed,
            epochs=epochs,
            world_size=world_size,
            shuffle=training,
            consumed=self._left_out(ledger, epochs, tasks),
        )

    def rows_of(self, rank: int) -> int:
        """Rows that ``rank`` yields in all. Ranks differ by at most one row an epoch."""
        return self._plan.rows_of(rank)

    def dataset(self) -> Dataset:
        """The rows as a Ray Data dataset that streams when it is iterated."""
        source = PlanDatasource(self._reader, self._groups, list(self._plan.pieces(self._rank)))
        if not source.tasks:
            return ray.data.from_arrow(pa.table({"sample_id": pa.array([], pa.string())}))
        tasks = min(self._tasks(), source.tasks)
        limits = ExecutionResources(cpu=tasks * CPUS_PER_TASK, gpu=0, object_store_memory=tasks * BYTES_PER_TASK)
        # Both operators ask for the same, so that Ray Data runs them as one task and no audio changes hands.
        read = ray.data.read_datasource(
            source, override_num_blocks=source.tasks, num_cpus=CPUS_PER_TASK, compute=TaskPoolStrategy(tasks)
        )
        read = quiet(read, preserve_order=True, limits=limits)
        return read.map_batches(
            self._featurise.__call__,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=CPUS_PER_TASK,
            compute=TaskPoolStrategy(tasks),
            zero_copy_batch=True,
        )

    def rows(self) -> Generator[dict[str, Any]]:
        """The rows, in the plan's order. ``features`` holds float32 in a buffer: :func:`read_features`."""
        return closed_with_session(self._rows())

    def _rows(self) -> Generator[dict[str, Any]]:
        if not self.rows_of(self._rank):
            return
        for block in self.dataset().iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            table = cast(pa.Table, block)
            for row, features in zip(table.drop_columns(["features"]).to_pylist(), table["features"], strict=True):
                yield row | {"features": features.as_buffer()}

    def _require(self, columns: Iterable[str]) -> None:
        there = self._reader.column_names(self._split.shards[0])
        for column in columns:
            if column not in there:
                raise CorpusError(f"{self._reader.corpus_uri} has no column {column!r}; it has: {', '.join(there)}")

    def _tasks(self) -> int:
        """Tasks at a time: this rank's share of the CPUs, two at least so that one reads while another computes."""
        return int(np.clip(data_cpus() // self._world_size, 2, MAX_TASKS))

    def _left_out(
        self, ledger: Ledger | None, epochs: int, tasks: Collection[str] | None
    ) -> dict[int, dict[int, np.ndarray]]:
        """Positions, by epoch and row group, of the samples that the ledger names and of unwanted tasks."""
        ledger = ledger or Ledger()
        if tasks is None and not any(epoch < epochs for epoch in ledger.epochs):
            return {}
        groups = self._index()
        ids = [[sample for sample, _ in group] for group in groups]
        unwanted = {sample for group in groups for sample, task in group if tasks is not None and task not in tasks}
        return {epoch: _positions(ids, ledger.seen(epoch) | unwanted) for epoch in range(epochs)}

    def _index(self) -> list[list[tuple[str, str]]]:
        """Id and task of the rows of each row group, in storage order: two columns of every shard are read."""
        with ThreadPoolExecutor(_INDEX_THREADS) as pool:
            shards = pool.map(self._reader.index, self._split.shards)
            groups = []
            for shard, rows in zip(self._split.shards, shards, strict=True):
                ends = np.cumsum(shard.row_groups).tolist()
                groups += [rows[end - count : end] for end, count in zip(ends, shard.row_groups, strict=True)]
        return groups


def sound_columns(training: bool, augmentation: Augmentation) -> SoundColumns:
    """The columns of recordings that a stream needs."""
    if not training:
        return SoundColumns(("log_mel",))
    return SoundColumns(by_length=True) if augmentation == "none" else SoundColumns(("audio_16khz",))


def _positions(groups: Sequence[Sequence[str]], seen: frozenset[str]) -> dict[int, np.ndarray]:
    found = {
        group: np.array([place for place, sample in enumerate(ids) if sample in seen], np.int64)
        for group, ids in enumerate(groups)
    }
    return {group: places for group, places in found.items() if len(places)}
