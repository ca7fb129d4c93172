"""``data/published``: our stream against the published loader's recipe, on files as the public datasets ship them."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import librosa
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.data.bare import stream_rate
from benchmarks.data.corpora import BATCH, MIXED, make, write_recordings
from benchmarks.report import Result, median_round
from stetholm.ray_session import ray_session
from stetholm.settings import StorageSettings
from stetholm.storage import open_storage

RECORDINGS, ROUNDS, WORKERS = 600, 3, 2
SECONDS = 15.0
RATE, CLIP = 16_000, 7 * 16_000


class PublishedDataset(Dataset[Tensor]):
    """Opens, resamples and crops a file and makes its spectrogram, anew for every sample."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        waveform, _ = librosa.load(self.paths[index], sr=RATE)
        if len(waveform) > CLIP:
            start = np.random.randint(len(waveform) - CLIP + 1)
            waveform = waveform[start : start + CLIP]
        waveform = np.pad(waveform, (0, CLIP - len(waveform)))
        mel = librosa.feature.melspectrogram(
            y=waveform, sr=RATE, n_fft=1024, hop_length=512, n_mels=64, fmin=50, fmax=8000
        )
        decibels = librosa.power_to_db(mel, ref=np.max)
        return torch.from_numpy((decibels - decibels.min()) / (decibels.max() - decibels.min()))


def one_thread(worker: int) -> None:
    """To the baseline's advantage: two workers' matrix products with two threads each are in each other's way."""
    threadpool_limits(1)


def published() -> Iterator[Result]:
    """Both sides in turns; the median of the rounds' ratios decides. Neither augments waveforms."""
    storage = open_storage(StorageSettings())
    with tempfile.TemporaryDirectory(prefix="stetholm-bench-") as folder, ray_session():
        jsonl = write_recordings(Path(folder), RECORDINGS, MIXED)
        began = time.perf_counter()
        uri = make(storage, "bench-published", jsonl)
        ingested = time.perf_counter() - began
        paths = sorted(Path(folder).glob("*.wav"))
        rounds = [(*stream_rate(storage, uri, from_waveforms=False), loader_rate(paths)) for _ in range(ROUNDS)]
        decoding, _ = stream_rate(storage, uri, from_waveforms=True)
    ours, loader = median_round(rounds)
    yield Result(
        "data/published",
        ours,
        loader,
        "clips/s",
        "librosa.load with its resampling, librosa's mel, torch DataLoader with 2 workers, files on the local disk",
        {
            "recordings": RECORDINGS,
            "formats": [f"{form.rate} Hz {form.subtype} {form.seconds:g} s" for form in MIXED],
            "rounds": [f"{each[0]:.0f}/{each[2]:.0f}" for each in rounds],
            "cpus": os.cpu_count(),
            "ingest_seconds_once": ingested,
            "clips_per_s_where_each_is_decoded": decoding,
            "seconds_to_first_batch": statistics.median(each[1] for each in rounds),
        },
    )


def loader_rate(paths: list[Path]) -> float:
    """Clips a second of the published loader in the steady state."""
    clips, started = 0, 0.0
    while True:
        loader = DataLoader(
            PublishedDataset(paths), BATCH, shuffle=True, num_workers=WORKERS, worker_init_fn=one_thread
        )
        for number, batch in enumerate(loader):
            now = time.perf_counter()
            if not started:
                started = now if number >= 2 * WORKERS else 0.0
                continue
            clips += len(batch)
            if now - started > SECONDS:
                return clips / (now - started)
