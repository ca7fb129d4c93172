"""``data/memory``: the peak memory of reader and object store over 10 GB of shards, against 1 GB."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks.data.bare import FORMATS
from benchmarks.data.corpora import make, write_recordings
from benchmarks.report import Result
from stetholm.corpus.manifest import Manifest, ShardInfo, SplitInfo, part_path
from stetholm.corpus.stream import CorpusStream, read_features
from stetholm.demo.footprint import memory
from stetholm.ray_session import ray_session
from stetholm.settings import StorageSettings
from stetholm.storage import Storage, open_storage

GB = 10**9
SMALL, LARGE = 1, 10
RECORDINGS = 800
EVERY_S = 0.25


def memory_bound() -> Iterator[Result]:
    """As many rows of each, each in a Ray of its own: one epoch over the large corpus, ten over the small one.

    What grows with the time of reading alone (Ray's statistics, the allocators' pools) is in both sides.
    """
    storage = open_storage(StorageSettings())
    with tempfile.TemporaryDirectory(prefix="stetholm-bench-") as folder:
        uri = make(storage, "bench-memory", write_recordings(Path(folder), RECORDINGS, FORMATS))
    small, large = (grow(storage, uri, size * GB) for size in (SMALL, LARGE))
    read(storage, small, 1)  # warms the machine's caches, so that both find the same
    peaks = [read(storage, corpus, epochs) for corpus, epochs in ((small, LARGE // SMALL), (large, 1))]
    yield Result(
        "data/memory",
        peaks[1] / 2**20,
        peaks[0] / 2**20,
        "MiB",
        f"{LARGE // SMALL} epochs over {SMALL} GB of shards instead of one over {LARGE} GB (nearer to 1 is better)",
        {"gigabytes": [SMALL, LARGE], "counted": "this process, Ray's workers, its raylet with the object store"},
    )


def grow(storage: Storage, uri: str, size: int) -> str:
    """A corpus of ``size`` bytes: copies of the shards of another one, made by the server."""
    manifest = Manifest.load(storage, uri)
    shards = manifest.split("train").shards
    copies: list[ShardInfo] = []
    target, total = f"{uri}-{size // GB}gb", 0
    while total < size:
        shard = shards[len(copies) % len(shards)]
        path = part_path("train", len(copies), shard.sha256)
        storage.fs.copy(storage.key(f"{uri}/{shard.path}"), storage.key(f"{target}/{path}"))
        copies.append(replace(shard, path=path))
        total += shard.bytes
    replace(manifest, splits={"train": SplitInfo(copies)}).save(storage, target)
    return target


def read(storage: Storage, uri: str, epochs: int) -> int:
    """Peak bytes while ``epochs`` are read."""
    with ray_session():
        before, done = memory(psutil.Process()), threading.Event()
        peaks: list[int] = []
        watch = threading.Thread(target=_watch, args=(peaks, done))
        watch.start()
        stream = CorpusStream(storage, uri, split="train", seed=0, epochs=epochs, from_waveforms=True)
        started, rows = time.perf_counter(), 0
        try:
            for row in stream.rows():
                read_features(row)
                rows += 1
        finally:
            done.set()
            watch.join()
        assert rows == stream.rows_of(0)
    peak, seconds = max(peaks) - before, time.perf_counter() - started
    print(f"bench: {uri}: {rows} rows in {seconds:.0f} s, {peak / 2**20:.0f} MiB", flush=True)
    return peak


def _watch(peaks: list[int], done: threading.Event) -> None:
    me = psutil.Process()
    while not done.wait(EVERY_S):
        family = [process for process in me.children(recursive=True) if _counts(process)]
        peaks.append(sum(memory(process) for process in (me, *family)))


def _counts(process: psutil.Process) -> bool:
    try:
        return process.name().startswith(("ray::", "raylet"))
    except psutil.Error:
        return False
