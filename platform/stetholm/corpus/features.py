"""The stream's work on each block of rows: decode a clip, augment, log-mel, then the caller's ``prepare``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray import cloudpickle

from stetholm.audio.augment import augment
from stetholm.audio.features import N_FRAMES, N_MELS, log_mel
from stetholm.corpus.derived import Derived, crop_decibels, longer_than_clip, read_clip, unpack_log_mel
from stetholm.corpus.memory import keep_freed_memory
from stetholm.settings import Augmentation

Prepare = Callable[[dict[str, Any]], dict[str, Any]]


def read_features(row: Mapping[str, Any]) -> NDArray[np.float32]:
    """The log-mel spectrograms of a row of the stream: float32 ``(recordings, 64, 218)``."""
    return np.frombuffer(row["features"], np.float32).reshape(row["recordings"], N_MELS, N_FRAMES)


def sample_rng(seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """Random numbers that depend on the seed, the epoch and the sample alone, whoever reads it and when."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{sample_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


class Cached:
    """A function that a worker process unpickles once, not once a task: a tokenizer takes a tenth of a second."""

    def __init__(self, function: Prepare) -> None:
        self._bytes: bytes = cloudpickle.dumps(function)
        self._key = hashlib.sha256(self._bytes).digest()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Call the function."""
        if self._key not in _FUNCTIONS:
            _FUNCTIONS.clear()  # of an earlier stream; one at a time is in use
            _FUNCTIONS[self._key] = cloudpickle.loads(self._bytes)
        return _FUNCTIONS[self._key](row)


_FUNCTIONS: dict[bytes, Prepare] = {}


@dataclass(frozen=True)
class Featurise:
    """The Ray Data task after the read: rows with recordings in, rows with features out.

    Attributes:
        seed: of the crops and the augmentation.
        training: crop at random; else from the start.
        augmentation: how waveforms change (training only).
        drop: columns that are not handed on.
        prepare: adds columns to each row.
    """

    seed: int
    training: bool
    augmentation: Augmentation
    drop: tuple[str, ...]
    prepare: Cached | None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Featurise a block."""
        keep_freed_memory()
        features = [np.stack(list(self._spectrograms(row))) for row in _sounds(table)]
        bare = table.drop_columns([name for name in self.drop if name in table.column_names])
        bare = bare.append_column("recordings", pa.array([len(sounds) for sounds in features], pa.int32()))
        if self.prepare is not None:
            bare = _with_prepared(bare, [self.prepare(row) for row in bare.to_pylist()])
        return bare.append_column("features", _binary(features))

    def _spectrograms(self, row: _Row) -> Iterator[NDArray[np.float32]]:
        """One of each recording of a row: the kept one where it is what would be computed."""
        rng = sample_rng(self.seed, row.epoch, row.sample_id) if self.training else None
        for seconds, copy, packed, decibels in zip(row.seconds, row.copies, row.log_mels, row.decibels, strict=True):
            if rng is not None and copy is not None:
                yield log_mel(augment(read_clip(copy, rng), rng, self.augmentation))
            elif rng is not None and longer_than_clip(seconds):
                yield crop_decibels(decibels, rng)
            else:
                yield unpack_log_mel(packed)


@dataclass(frozen=True)
class _Row:
    """What of a row makes its features; a column that was not read is all None."""

    sample_id: str
    epoch: int
    seconds: list[float]
    copies: list[Any]
    log_mels: list[Any]
    decibels: list[Any]


def _sounds(table: pa.Table) -> Iterator[_Row]:
    facts = table.select(["sample_id", "epoch", "seconds"]).to_pylist()
    columns = [_buffers(table, name) for name in Derived._fields]
    for row, *sounds in zip(facts, *columns, strict=True):
        seconds = row["seconds"]
        known = (found if found is not None else [None] * len(seconds) for found in sounds)
        yield _Row(row["sample_id"], row["epoch"], seconds, *known)


def _buffers(table: pa.Table, name: str) -> list[list[pa.Buffer] | None]:
    """The recordings of each row without a copy."""
    if name not in table.column_names:
        return [None] * len(table)
    return [[sound.as_buffer() for sound in row.values] for row in table[name]]


def _binary(features: Sequence[NDArray[np.float32]]) -> pa.Array:
    """Arrays as a binary column, copied once."""
    ends = np.cumsum([0, *(array.nbytes for array in features)])
    data = np.concatenate([array.ravel() for array in features])
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(features), [None, pa.py_buffer(ends.astype(np.int64)), pa.py_buffer(data)]
    )


def _with_prepared(table: pa.Table, prepared: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Add the columns that ``prepare`` returned; one with the name of a column that is there takes its place."""
    added = pa.Table.from_pylist([dict(row) for row in prepared])
    for name in added.column_names:
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, added[name])
    return table
