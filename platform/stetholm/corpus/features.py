"""The stream's work on each block of rows: decode, resample, crop, augment, log-mel, then the caller's ``prepare``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray import cloudpickle

from stetholm.audio.augment import augment
from stetholm.audio.decode import decode
from stetholm.audio.features import CLIP_SAMPLES, N_FRAMES, N_MELS, SAMPLE_RATE, crop, log_mel
from stetholm.audio.resample import resample
from stetholm.settings import AudioSettings

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
    """The Ray Data task after the read: rows with FLAC in, rows with features out.

    Attributes:
        seed: of the crops and the augmentation.
        training: crop at random; else from the start.
        augment: change the waveform in ways that keep its label (training only).
        keep_audio: columns among ``audio`` and ``sampling_rate`` that stay in the row.
        prepare: adds columns to each row.
        limits: bounds on every sound that is decoded.
    """

    seed: int
    training: bool
    augment: bool
    keep_audio: frozenset[str]
    prepare: Cached | None
    limits: AudioSettings

    def __call__(self, table: pa.Table) -> pa.Table:
        """Featurise a block."""
        features = self._features(table)
        bare = table.drop_columns(sorted({"audio", "sampling_rate"} - self.keep_audio))
        bare = bare.append_column("recordings", pa.array([len(sounds) for sounds in features], pa.int32()))
        if self.prepare is not None:
            bare = _with_prepared(bare, [self.prepare(row) for row in bare.to_pylist()])
        flat = [np.concatenate(sounds).tobytes() for sounds in features]
        return bare.append_column("features", pa.array(flat, pa.binary()))

    def _features(self, table: pa.Table) -> list[list[NDArray[np.float32]]]:
        """Spectrograms of each recording of each row."""
        sounds = _Sounds(self)
        result = []
        columns = (table[name] for name in ("sample_id", "epoch", "recording_ids", "audio"))
        for sample, epoch, ids, audio in zip(*columns, strict=True):
            rng = sample_rng(self.seed, epoch.as_py(), sample.as_py()) if self.training else None
            pairs = zip(ids.as_py(), audio, strict=True)
            result.append([sounds.spectrogram(recording, flac.as_buffer(), rng) for recording, flac in pairs])
        return result


class _Sounds:
    """The recordings of one block, each decoded once: several of its pairs may be about one."""

    def __init__(self, settings: Featurise) -> None:
        self._settings = settings
        self._waveforms: dict[str, NDArray[np.float32]] = {}
        self._from_start: dict[str, NDArray[np.float32]] = {}

    def spectrogram(self, recording: str, flac: pa.Buffer, rng: np.random.Generator | None) -> NDArray[np.float32]:
        """The spectrogram of a recording: of a random, augmented crop with ``rng``, else of its start."""
        if recording not in self._waveforms:
            self._waveforms[recording] = _waveform(flac, self._settings.limits)
        waveform = self._waveforms[recording]
        if rng is not None and self._settings.augment:
            return log_mel(augment(crop(waveform, rng), rng))
        if rng is not None and len(waveform) > CLIP_SAMPLES:
            return log_mel(crop(waveform, rng))
        if recording not in self._from_start:
            self._from_start[recording] = log_mel(waveform)
        return self._from_start[recording]


def _waveform(flac: pa.Buffer, limits: AudioSettings) -> NDArray[np.float32]:
    sound = decode(flac.to_pybytes(), limits)
    return resample(sound.samples, sound.rate, SAMPLE_RATE)


def _with_prepared(table: pa.Table, prepared: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Add the columns that ``prepare`` returned; one with the name of a column that is there takes its place."""
    added = pa.Table.from_pylist([dict(row) for row in prepared])
    for name in added.column_names:
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, added[name])
    return table
