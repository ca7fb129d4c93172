"""``data/bare``: clips from S3 to ready batches, against the same work in plain processes, one a core, without Ray."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Generator, Iterator
from itertools import cycle
from multiprocessing.pool import Pool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
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
from stetholm.training.batches import Batch

RECORDINGS, ROUNDS = 1_500, 15
FORMATS = (Format(4_000, "PCM_16", 10.0), Format(8_000, "PCM_16", 8.0))
"""Longer than a clip, so that each epoch takes another crop."""
SECONDS, WARM_SECONDS = 8.0, 8.0
CORES = os.cpu_count() or 1
EPOCHS = 400
"""More than can be read in this time."""


def bare() -> Iterator[Result]:
    """Both sides in turns of some seconds, since a machine's speed drifts; the turn of the median ratio counts."""
    storage = open_storage(StorageSettings())
    with tempfile.TemporaryDirectory(prefix="stetholm-bench-") as folder, ray_session():
        uri = make(storage, "bench-bare", write_recordings(Path(folder), RECORDINGS, FORMATS))
        with multiprocessing.get_context("spawn").Pool(CORES) as pool:
            rounds = turns(storage, uri, pool)
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
            "turns": [f"{each[0]:.0f}/{each[2]:.0f}" for each in rounds],
            "seconds_a_turn": SECONDS,
            "processes": CORES,
            "seconds_to_first_batch": rounds[0][1],
            "clips_per_s_from_kept_log_mels": kept,
        },
    )


def turns(storage: Storage, uri: str, pool: Pool) -> list[tuple[float, float, float]]:
    """Of each turn: clips a second of the stream, seconds to its first batch, clips a second of the loop."""
    copies = training_copies(storage, uri)
    pool.map(loop, [(copies[:8], 0.1)] * CORES, chunksize=1)  # it has started before anything is measured
    began = time.perf_counter()
    ready = open_stream(storage, uri, from_waveforms=True)
    next(ready)
    first = time.perf_counter() - began
    clip_rate(ready, WARM_SECONDS)
    rounds = []
    for _ in range(ROUNDS):
        ours = clip_rate(ready, SECONDS)
        with stopped(children_but(multiprocessing.active_children())):
            rounds.append((ours, first, loop_rate(pool, copies)))
    ready.close()
    return rounds


def open_stream(storage: Storage, uri: str, *, from_waveforms: bool) -> Generator[Batch]:
    """Batches of the train split, for ever."""
    return batches(CorpusStream(storage, uri, split="train", seed=0, epochs=EPOCHS, from_waveforms=from_waveforms))


def clip_rate(ready: Iterator[Batch], seconds: float) -> float:
    """Clips a second in batches that are taken for so long."""
    clips, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds:
        clips += len(next(ready)["input_features"])
    return clips / took


def children_but(others: list[BaseProcess]) -> list[psutil.Process]:
    """Ray, its workers and the storage server: whatever this process began but ``others``."""
    kept = {process.pid for process in others}
    return [process for process in psutil.Process().children(recursive=True) if process.pid not in kept]


@contextlib.contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """Hold processes still, so that the other side has the machine to itself; they go on where they were."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def stream_rate(storage: Storage, uri: str, *, from_waveforms: bool) -> tuple[float, float]:
    """Clips a second in ready batches in the steady state, and seconds until the first batch."""
    began = time.perf_counter()
    ready = open_stream(storage, uri, from_waveforms=from_waveforms)
    next(ready)
    first = time.perf_counter() - began
    clip_rate(ready, WARM_SECONDS)
    rate = clip_rate(ready, 2 * SECONDS)
    ready.close()
    return rate, first


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
    return sum(pool.map(loop, [(copies[core::CORES], SECONDS) for core in range(CORES)], chunksize=1))


def loop(what: tuple[list[bytes], float]) -> float:
    """Clips a second of a plain loop over copies for some seconds."""
    copies, seconds = what
    with threadpool_limits(1):  # one process a core: threads of the matrix product would be in each other's way
        started = time.perf_counter()
        for number, copy in enumerate(cycle(copies)):
            log_mel(read_clip(copy, sample_rng(0, 0, str(number))))
            if time.perf_counter() - started > seconds:
                return (number + 1) / (time.perf_counter() - started)
    raise AssertionError("there is nothing to read")
