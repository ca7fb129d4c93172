"""``data/wait``: the share of the steps' time in which SFT with two workers waits for data."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.report import Result
from stetholm.corpus.ingest import ingest
from stetholm.ray_session import ray_session
from stetholm.settings import load_settings
from stetholm.storage import open_storage
from stetholm.training.stage import train_stage

STEPS, PATIENTS = 40, 96
SETTINGS = (
    "run.name=bench-wait",
    f"corpus.synthetic.patients={PATIENTS}",
    "train.workers=2",
    f"train.max_steps={STEPS}",
)


def wait() -> Iterator[Result]:
    """A real SFT of the embedded model with the default settings: augmented waveforms, ZeRO-2, two workers."""
    settings = load_settings(None, SETTINGS)
    storage = open_storage(settings.storage)
    with ray_session():
        ingest(settings, storage)
        trained = train_stage(settings, storage, "sft")
    seconds = trained["samples"] / trained["samples_per_second"]
    yield Result(
        "data/wait",
        trained["data_wait"] * seconds,
        seconds,
        "s",
        "the time of the steps (less is better): the wait of the worker that waited longest, batches' making included",
        {
            "steps": trained["steps"],
            "workers": 2,
            "batch_size": settings.stage("sft").batch_size,
            "augmentation": settings.stage("sft").augmentation,
            "seconds_to_first_batch": trained["data_start_seconds"],
        },
    )
