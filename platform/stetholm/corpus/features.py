"""The stream's work on each block of rows: decode a clip, augment, log-mel, then the caller's ``prepare``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
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
        ends = np.cumsum([0, *(len(seconds) for seconds in table["seconds"].to_pylist())])
        features = np.empty((ends[-1], N_MELS, N_FRAMES), np.float32)
        for place, spectrogram in enumerate(self._spectrograms(table)):
            features[place] = spectrogram
        bare = table.drop_columns([name for name in self.drop if name in table.column_names])
        bare = bare.append_column("recordings", pa.array(np.diff(ends), pa.int32()))
        if self.prepare is not None:
            bare = _with_prepared(bare, [self.prepare(row) for row in bare.to_pylist()])
        return bare.append_column("features", _binary(features, ends))

    def _spectrograms(self, table: pa.Table) -> Iterator[NDArray[np.float32]]:
        """One of each recording of each row: the kept one where it is what would be computed."""
        facts = (table[name].to_pylist() for name in ("sample_id", "epoch", "seconds"))
        copies, log_mels, decibels = (_sounds(table, name) for name in Derived._fields)
        for sample_id, epoch, lengths in zip(*facts, strict=True):
            rng = sample_rng(self.seed, epoch, sample_id) if self.training else None
            for seconds in lengths:
                copy, packed, whole = next(copies), next(log_mels), next(decibels)
                if rng is None:
                    yield unpack_log_mel(packed)
                elif copy is not None:
                    yield log_mel(self._augmented(read_clip(copy, rng), rng))
                else:
                    yield crop_decibels(whole, rng) if longer_than_clip(seconds) else unpack_log_mel(packed)

    def _augmented(self, clip: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        return clip if self.augmentation == "none" else augment(clip, rng, self.augmentation)


def _sounds(table: pa.Table, name: str) -> Iterator[Any]:
    """The recordings of all rows, one after the other, without a copy; of a column that was not read, Nones."""
    if name not in table.column_names:
        yield from repeat(None)
    for chunk in table[name].chunks:
        sounds = chunk.flatten()
        _, ends, data = sounds.buffers()
        offsets = np.frombuffer(ends, np.int32, len(sounds) + 1, 4 * sounds.offset)
        whole = memoryview(data) if data is not None else memoryview(b"")
        for start, end in pairwise(offsets.tolist()):
            yield whole[start:end]


def _binary(features: NDArray[np.float32], ends: NDArray[np.int64]) -> pa.Array:
    """Rows of recordings (those of row i end at ``ends[i + 1]``) as a binary column, without a copy."""
    offsets = ends.astype(np.int64) * (4 * N_MELS * N_FRAMES)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(features)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _with_prepared(table: pa.Table, prepared: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Add the columns that ``prepare`` returned; one with the name of a column that is there takes its place."""
    added = pa.Table.from_pylist([dict(row) for row in prepared])
    for name in added.column_names:
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, added[name])
    return table
