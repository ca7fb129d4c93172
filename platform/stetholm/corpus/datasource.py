"""Ray Data below the stream: a data source that reads the rows of a plan, and execution options that keep it small."""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext, Dataset, ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from stetholm.corpus.derived import longer_than_clip
from stetholm.corpus.manifest import ShardInfo, SplitInfo
from stetholm.corpus.parquet import read_parquet
from stetholm.corpus.plan import Piece
from stetholm.storage import Storage

MAX_READ_TASKS = 2_000
"""Ray Data stores every read task before the first one starts, at about half a millisecond each."""
ROWS_PER_TASK = 768
"""Where there are so many: seconds of work, so that a core seldom waits for its next task."""
BLOCK_BYTES = 4 * 2**20
"""A task hands on what it has made in blocks of about this size, and not all at its end."""
SHORT_TASKS = 8
"""So many at the beginning read one row group each, so that the first rows come soon."""
MIN_TASKS = 8
"""Rather than fewer tasks, smaller ones: a short epoch is to keep all readers busy too."""
ROWS_PER_BLOCK = 64
"""Rows that are decoded together: few, so that little is in flight."""
ROW_BYTES = 64 * 218 * 4
"""One log-mel spectrogram in float32, the bulk of a row."""

D = TypeVar("D", bound=Dataset)
T = TypeVar("T")


def quiet(dataset: D, *, preserve_order: bool = False, limits: ExecutionResources | None = None) -> D:
    """Set the execution options of one dataset, without touching the process's own context."""
    context: DataContext = dataset.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # only for its statistics, and not free
    context.raise_original_map_exception = True  # else a UserError in a task loses its message on the way
    # It would warn, once a process, that its bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context.execution_options.preserve_order = preserve_order
    if limits is not None:
        context.execution_options.resource_limits = limits
    return dataset


@dataclass(frozen=True)
class GroupRef:
    """Where one row group lies."""

    path: str
    """Of the shard, below the corpus."""
    sha256: str
    """Of the shard."""
    row_group: int


def row_groups(split: SplitInfo) -> tuple[list[GroupRef], list[int]]:
    """The row groups of a split in storage order, and the rows of each."""
    refs = [
        GroupRef(shard.path, shard.sha256, index) for shard in split.shards for index in range(len(shard.row_groups))
    ]
    return refs, [rows for shard in split.shards for rows in shard.row_groups]


class IndexRow(NamedTuple):
    """Three columns of a row."""

    sample_id: str
    task: str
    distribution: str


@dataclass(frozen=True)
class SoundColumns:
    """Which columns of recordings a stream reads.

    Attributes:
        always: these.
        by_length: and the log-mels of clips where a recording is no longer, the decibels of all of it where one is.
    """

    always: tuple[str, ...] = ()
    by_length: bool = False

    @staticmethod
    def needed(seconds: pa.ChunkedArray) -> list[str]:
        """Columns for recordings of these lengths (a list a row)."""
        longer = [longer_than_clip(each) for row in seconds.to_pylist() for each in row]
        return [name for name, wanted in (("decibels", any(longer)), ("log_mel", not all(longer))) if wanted]


@dataclass(frozen=True)
class ShardReader:
    """Reads rows of row groups from storage. Picklable and small: every read task carries it."""

    storage: Storage
    corpus_uri: str
    columns: tuple[str, ...] = ()
    sounds: SoundColumns = SoundColumns()

    def read(self, group: GroupRef, piece: Piece) -> Iterator[pa.Table]:
        """The rows of ``piece`` in its order, with a column ``epoch``, in tables of at most ``ROWS_PER_BLOCK``."""
        whole = self._group(group, [*self.columns, *self.sounds.always])
        if self.sounds.by_length:
            wanted = self.sounds.needed(whole["seconds"].take(piece.rows))
            sounds = self._group(group, wanted)
            for name in wanted:
                whole = whole.append_column(name, sounds[name])
        for start in range(0, len(piece.rows), ROWS_PER_BLOCK):
            table = whole.take(pa.array(piece.rows[start : start + ROWS_PER_BLOCK]))
            yield table.append_column("epoch", pa.array([piece.epoch] * len(table), pa.int32()))

    def _group(self, group: GroupRef, columns: list[str]) -> pa.Table:
        return self._file(
            group.path,
            group.sha256,
            lambda file: file.read_row_group(group.row_group, columns=columns, use_threads=False),
        )

    def texts(self, group: GroupRef, columns: Sequence[str]) -> pa.Table:
        """Columns of a row group, in storage order."""
        return self._group(group, list(columns))

    def index(self, shard: ShardInfo) -> list[IndexRow]:
        """What choices of rows go by, of all rows of a shard, in storage order."""
        table = self._file(
            shard.path, shard.sha256, lambda file: file.read(columns=list(IndexRow._fields), use_threads=False)
        )
        return [IndexRow(*row) for row in zip(*(table[name].to_pylist() for name in IndexRow._fields), strict=True)]

    def column_names(self, shard: ShardInfo) -> list[str]:
        """Columns of a shard."""
        return self._file(shard.path, shard.sha256, lambda file: list(file.schema_arrow.names))

    def _file(self, path: str, sha256: str, read: Callable[[pq.ParquetFile], T]) -> T:
        """What ``read`` gives of a shard."""
        return read_parquet(self.storage, f"{self.corpus_uri}/{path}", read, sha256)


class PlanDatasource(Datasource):
    """The pieces of one rank, in order, as read tasks."""

    def __init__(self, reader: ShardReader, groups: Sequence[GroupRef], pieces: Sequence[Piece]) -> None:
        super().__init__()
        self._reader = reader
        self._groups = groups
        self._pieces = pieces

    def get_name(self) -> str:
        """Name of the read tasks in the dashboard."""
        return "Corpus"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all rows once they are features."""
        return sum(len(piece.rows) for piece in self._pieces) * ROW_BYTES

    @property
    def tasks(self) -> int:
        """How many read tasks there are."""
        return len(self._starts())

    @property
    def _pieces_per_task(self) -> int:
        pieces, rows = len(self._pieces), sum(len(piece.rows) for piece in self._pieces)
        wanted = min(ROWS_PER_TASK * pieces // max(rows, 1), pieces // MIN_TASKS)
        return max(1, wanted, math.ceil(pieces / MAX_READ_TASKS))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task for one piece (or some, where there are very many). ``parallelism`` cannot change the plan."""
        starts = [*self._starts(), len(self._pieces)]
        return [self._task(self._pieces[start:end], per_task_row_limit) for start, end in pairwise(starts)]

    def _starts(self) -> list[int]:
        """The first piece of each task."""
        count = len(self._pieces)
        short = min(SHORT_TASKS, count)
        return [*range(short), *range(short, count, self._pieces_per_task)]

    def _task(self, pieces: Sequence[Piece], row_limit: int | None) -> ReadTask:
        work = [(self._groups[piece.group], piece) for piece in pieces]
        rows = sum(len(piece.rows) for piece in pieces)
        metadata = BlockMetadata(num_rows=rows, size_bytes=rows * ROW_BYTES, exec_stats=None, input_files=None)
        return ReadTask(partial(_read, self._reader, work), metadata, per_task_row_limit=row_limit)


def _read(reader: ShardReader, work: Sequence[tuple[GroupRef, Piece]]) -> Iterator[pa.Table]:
    """The rows of some pieces; while one is computed on, the next one is on its way."""
    with ThreadPoolExecutor(1) as pool:
        ahead: deque[Future[list[pa.Table]]] = deque()
        for group, piece in work:
            ahead.append(pool.submit(lambda *what: list(reader.read(*what)), group, piece))
            if len(ahead) > 1:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def data_cores() -> int:
    """Processor cores of the Ray cluster, or fewer if it was told so: a local Ray has more CPUs than cores."""
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return max(1, min(int(ray.cluster_resources().get("CPU", 1)), nodes * (os.cpu_count() or 1)))
