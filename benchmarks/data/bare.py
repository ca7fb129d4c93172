"""``data/bare``: clips from S3 to ready batches, against the same work in plain processes, one a core, without Ray."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from benchmarks.data.corpora import Format, batches, make, write_recordings
from benchmarks.report import Result, median_round
from stetholm.audio.features import log_mel
from stetholm.corpus.derived import read_clip
from stetholm.corpus.features import sample_rng
from stetholm.corpus.manifest import Manifest
from stetholm.corpus.stream import CorpusStream
from stetholm.ray_session import ray_session
from stetholm.settings import StorageSettings
from stetholm.storage import Storage, open_storage

RECORDINGS, ROUNDS = 1_500, 7
FORMATS = (Format(4_000, "PCM_16", 10.0), Format(8_000, "PCM_16", 8.0))
"""Longer than a clip, so that each epoch takes another crop."""
SECONDS, WARM_SECONDS = 12.0, 4.0
CORES = os.cpu_count() or 1
EPOCHS = 400
"""More than can be read in this time."""


def bare() -> Iterator[Result]:
    """Both sides in turns, some seconds each, since a machine's speed drifts; the round of the median ratio counts."""
    storage = open_storage(StorageSettings())
    with tempfile.TemporaryDirectory(prefix="stetholm-bench-") as folder, ray_session():
        uri = make(storage, "bench-bare", write_recordings(Path(folder), RECORDINGS, FORMATS))
        copies = training_copies(storage, uri)
        with multiprocessing.get_context("spawn").Pool(CORES) as pool:
            rounds = [(*stream_rate(storage, uri, from_waveforms=True), loop_rate(pool, copies)) for _ in range(ROUNDS)]
        kept, _ = stream_rate(storage, uri, from_waveforms=False)
    ours, loop = median_round(rounds)
    yield Result(
        "data/bare",
        ours,
        loop,
        "clips/s",
        "a bare loop of the same decoding and log-mel, one process a core, bytes in memory, no Ray, no batches",
        {
            "recordings": RECORDINGS,
            "rounds": [f"{each[0]:.0f}/{each[2]:.0f}" for each in rounds],
            "processes": CORES,
            "seconds_to_first_batch": statistics.median(each[1] for each in rounds),
            "clips_per_s_from_kept_log_mels": kept,
        },
    )


def stream_rate(storage: Storage, uri: str, *, from_waveforms: bool) -> tuple[float, float]:
    """Clips a second in ready batches in the steady state, and seconds until the first batch."""
    began = time.perf_counter()
    stream = CorpusStream(storage, uri, split="train", seed=0, epochs=EPOCHS, from_waveforms=from_waveforms)
    ready = batches(stream)
    next(ready)
    first = time.perf_counter()
    clips, started = 0, 0.0
    for batch in ready:
        now = time.perf_counter()
        if not started:
            started = now if now - first > WARM_SECONDS else 0.0
            continue
        clips += len(batch["input_features"])
        if now - started > SECONDS:
            break
    ready.close()
    return clips / (now - started), first - began


def training_copies(storage: Storage, uri: str) -> list[bytes]:
    """The training copies of the train split."""
    copies: list[bytes] = []
    for shard in Manifest.load(storage, uri).split("train").shards:
        where = storage.key(f"{uri}/{shard.path}")
        table: Any = pq.read_table(where, columns=["audio_16khz"], filesystem=storage.arrow_reader())
        copies += [copy for row in table["audio_16khz"].to_pylist() for copy in row]
    return copies


def loop_rate(pool: Pool, copies: list[bytes]) -> float:
    """Clips a second of one process a core over equal parts of the copies."""
    return sum(pool.map(loop, [copies[core::CORES] for core in range(CORES)], chunksize=1))


def loop(copies: list[bytes]) -> float:
    """Clips a second of a plain loop for ``SECONDS``."""
    clips = 0
    with threadpool_limits(1):  # one process a core: threads of the matrix product would be in each other's way
        started = time.perf_counter()
        for copy in cycle(copies):
            log_mel(read_clip(copy, sample_rng(0, 0, str(clips))))
            clips += 1
            if time.perf_counter() - started > SECONDS:
                return clips / (time.perf_counter() - started)
    raise AssertionError("there is nothing to read")
