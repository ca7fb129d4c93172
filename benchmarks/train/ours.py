"""Our training as a side of a benchmark: ``run_stage`` as it is, on rows in memory, without Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.train.samples import COUNT, MemoryStream, training_pairs
from benchmarks.train.sides import Pace
from stetholm.settings import Settings, StageName
from stetholm.storage import Storage
from stetholm.training import planning, worker
from stetholm.training.batches import Row
from stetholm.training.flops import Costs, step_costs
from stetholm.training.job import StageJob
from stetholm.training.lineage import Lineage
from stetholm.training.ranks import join_group

ENDLESS = 10**6
"""Steps: more than anybody waits for, so that no checkpoint is written within a turn."""


def stage_job(stage: StageName, model: Mapping[str, Any] | None = None, **train: Any) -> StageJob:
    """A stage of a fresh model, with some of the stage's settings."""
    settings = Settings.model_validate(
        {
            "run": {"name": "bench"},
            "model": dict(model or {}),
            stage: {"workers": 1, "max_steps": ENDLESS, "checkpoint_every": ENDLESS, "trackers": [], **train},
        }
    )
    return StageJob(stage, settings, Storage("s3://memory"), "memory", Lineage(stage, "bench", None, "memory", "", ""))


def train_ours(
    pace: Pace, *, stage: StageName, model: Mapping[str, Any] | None = None, samples: int = COUNT, **train: Any
) -> None:
    """The loop of our side: one rank.

    Args:
        pace: whose turn it is.
        stage: sft or dpo.
        model: settings of the model.
        samples: how many there are; they come again and again.
        train: settings of the stage.
    """
    torch.manual_seed(0)
    join_group(bool(train.get("use_gpu")))
    paced_stage(pace, stage_job(stage, model, **train), training_pairs(samples))


def paced_stage(pace: Pace, job: StageJob, rows: list[Row]) -> None:
    """``run_stage`` on ``rows`` in memory; its steps are made when ``pace`` says so."""
    make_trainer = worker.trainer_for

    def paced_trainer(stage: Any, model: Any, *others: Any) -> Any:
        trainer = make_trainer(stage, model, *others)
        trainer.add_callback(_Paced(pace, trainer, step_costs(model, reference=stage == "dpo")))
        return trainer

    vars(worker)["trainer_for"] = paced_trainer
    with contextlib.suppress(Over), read_from_memory(rows):
        worker.run_stage(job, None, _no_checkpoint)


@contextlib.contextmanager
def read_from_memory(rows: list[Row]) -> Iterator[None]:
    """Inside, ``run_stage`` trains on ``rows``: where a worker asks for its stream, it gets a :class:`MemoryStream`."""
    names = [vars(module) for module in (worker, planning)]
    before = [there["training_rows"] for there in names]
    try:
        for there in names:
            there["training_rows"] = partial(MemoryStream, rows)
        yield
    finally:
        for there, stream in zip(names, before, strict=True):
            there["training_rows"] = stream


class Over(Exception):
    """The pace wants no more steps. Raised, so that no last checkpoint is written."""


class _Paced(TrainerCallback):
    """Tells the pace of each step."""

    def __init__(self, pace: Pace, trainer: Any, costs: Costs) -> None:
        self._pace, self._trainer, self._costs = pace, trainer, costs

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._pace.ready():
            raise Over

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        counts = self._trainer.counts
        if not self._pace.step(counts.samples, counts.tokens, self._costs.of(counts)):
            raise Over


def _no_checkpoint(numbers: dict[str, Any], folder: Path | None) -> None:
    raise AssertionError("a benchmark's turn is over before a checkpoint is due")
