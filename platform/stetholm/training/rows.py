"""Which rows of the corpus a stage trains on."""

from __future__ import annotations

from typing import Any

from stetholm.corpus.manifest import Manifest
from stetholm.corpus.stream import CorpusStream
from stetholm.errors import UserError
from stetholm.settings import AlignSettings
from stetholm.training.job import StageJob


def training_rows(job: StageJob, **options: Any) -> CorpusStream:
    """The stream of them.

    Args:
        job: the stage.
        options: further ones of :class:`CorpusStream`.
    """
    defaults = {"augmentation": job.train.augmentation, "memory": job.settings.corpus.reader_bytes}
    return stage_rows(job, "train", **defaults | options)


def stage_rows(job: StageJob, split: str, **options: Any) -> CorpusStream:
    """The rows of ``split`` that are of the kind the stage trains on; ``options`` as in :func:`training_rows`."""
    return CorpusStream(
        job.storage,
        job.corpus,
        split=split,
        seed=job.settings.run.seed,
        extra_columns=("chosen", "rejected") if job.stage == "dpo" else (),
        tasks=_tasks(job, split),
        distributions=None if job.train.out_of_domain else ("ID",),
        **options,
    )


def require_rows(job: StageJob) -> None:
    """Raise a UserError if nothing of the corpus is left to train on."""
    if training_rows(job).rows_of(0):
        return
    choices = [f"tasks {', '.join(tasks)}"] if (tasks := _tasks(job)) else []
    choices += [] if job.train.out_of_domain else ["in-domain rows (train.out_of_domain=true takes the others too)"]
    raise UserError(
        f"the train split of {job.corpus} holds nothing that {job.stage} trains on: {' and '.join(choices)}"
    )


def _tasks(job: StageJob, split: str = "train") -> list[str] | None:
    """The tasks that the stage trains on; None for all."""
    if not isinstance(job.train, AlignSettings):
        return None
    there = Manifest.load(job.storage, job.corpus).split(split).counts.get("task", {})
    return [task for task in job.train.tasks if task in there] or None
