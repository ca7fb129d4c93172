"""How fast samples come: ``data/bare``."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from benchmarks.report import Result
from stetholm.audio.decode import decode
from stetholm.audio.features import SAMPLE_RATE, crop, log_mel
from stetholm.audio.resample import resample
from stetholm.corpus.ingest import ingest
from stetholm.corpus.manifest import Manifest
from stetholm.corpus.stream import CorpusStream, read_features
from stetholm.ray_session import ray_session
from stetholm.runs import corpus_uri
from stetholm.settings import load_settings
from stetholm.storage import Storage, open_storage

PATIENTS, EPOCHS = 64, 8
SETTINGS = ("run.name=bench-data", f"corpus.synthetic.patients={PATIENTS}")


def bare() -> Iterator[Result]:
    """The stream's clips a second in the steady state against a plain loop over the same recordings in one process."""
    settings = load_settings(None, SETTINGS)
    storage = open_storage(settings.storage)
    with ray_session():
        ingest(settings, storage)
        uri = corpus_uri(settings, storage)
        ours, clips = stream_rate(storage, uri)
    sounds = [sound for row in audio_rows(storage, uri) for sound in row]
    yield Result(
        "data/bare",
        ours,
        loop_rate(sounds),
        "clips/s",
        "the same decoding, resampling and log-mel in a plain loop in one process, bytes already in memory",
        {"clips": clips, "epochs": EPOCHS, "patients": PATIENTS, "cpus": os.cpu_count(), "augment": False},
    )


def stream_rate(storage: Storage, uri: str) -> tuple[float, int]:
    """Clips a second from the end of the first epoch on, and how many they were."""
    stream = CorpusStream(storage, uri, split="train", seed=0, epochs=EPOCHS)
    clips, started, first = 0, 0.0, stream.rows_of(0) // EPOCHS
    for number, row in enumerate(stream.rows()):
        if number == first:
            started = time.perf_counter()
        elif number > first:
            clips += len(read_features(row))
    return clips / (time.perf_counter() - started), clips


def audio_rows(storage: Storage, uri: str) -> list[list[bytes]]:
    """FLAC bytes of the train split, by row."""
    fs = storage.arrow_reader()
    shards = Manifest.load(storage, uri).split("train").shards
    rows: list[list[bytes]] = []
    for shard in shards:
        table: Any = pq.read_table(storage.key(f"{uri}/{shard.path}"), columns=["audio"], filesystem=fs)
        rows += table["audio"].to_pylist()
    return rows


def loop_rate(sounds: list[bytes]) -> float:
    """Clips a second of the plain loop: the median of three passes after a warm-up, on one thread as in Ray's tasks."""
    with threadpool_limits(1):
        loop(sounds[:8])
        return statistics.median(loop(sounds) for _ in range(3))


def loop(sounds: list[bytes]) -> float:
    """Clips a second of one pass."""
    started = time.perf_counter()
    for flac in sounds:
        sound = decode(flac)
        log_mel(crop(resample(sound.samples, sound.rate, SAMPLE_RATE), None))
    return len(sounds) / (time.perf_counter() - started)
