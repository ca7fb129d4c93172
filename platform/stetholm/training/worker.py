"""What one training worker does, with or without Ray around it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PrinterCallback

from stetholm.corpus.ledger import Ledger
from stetholm.corpus.stream import CorpusStream
from stetholm.model import StethoLMForConditionalGeneration, StethoLMProcessor
from stetholm.model.checkpoint import load_checkpoint, load_own_weights
from stetholm.model.fresh import build_model
from stetholm.model.lora import add_lora, set_trainable
from stetholm.settings import DpoSettings
from stetholm.training.arguments import trainer_arguments
from stetholm.training.batches import BatchPlan, Row, StepBatches
from stetholm.training.collate import Collate, Prepare, answers_of
from stetholm.training.job import StageJob
from stetholm.training.lineage import write_lineage
from stetholm.training.loop import Report, TrainingLoop
from stetholm.training.metrics import Counted
from stetholm.training.monitor import Monitor, monitor_for
from stetholm.training.precision import frozen_dtype, to_training_precision
from stetholm.training.ranks import any_of_all, rank, world_size
from stetholm.training.rows import training_rows
from stetholm.training.state import Progress, load_training_state
from stetholm.training.trainers import trainer_for


def run_stage(job: StageJob, resume: Path | None, report: Report) -> None:
    """Train this worker's part of ``job``; alone, or with torch.distributed initialised as one of several.

    Args:
        job: what to train.
        resume: folder of a checkpoint of this very stage to go on from.
        report: takes the checkpoints.
    """
    world = world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", world))))
    progress, moments, scheduler = load_training_state(resume) if resume else (Progress(), None, None)
    model, processor = _model(job, resume)
    prepare = _prepare(job, processor)
    # Beside training on a CPU, torch in each reading task would cost more memory than its microseconds a row are worth.
    in_stream = prepare if job.train.use_gpu else None
    stream = _stream(job, in_stream, progress, world)
    rows = stream.rows if in_stream else partial(_prepared, stream, prepare)
    plan = BatchPlan(job.train.batch_size, job.train.tokens_per_batch)
    planned_for = (world, _target(job), job.lineage.corpus_sha256)
    if planned_for != (progress.workers, progress.target, progress.corpus):
        progress.steps = progress.step + _steps(job, stream, plan, world, progress.step)
        progress.workers, progress.target, progress.corpus = planned_for
    if progress.step >= progress.steps:
        return
    with TemporaryDirectory(prefix="stetholm-train-") as scratch:
        arguments = trainer_arguments(job.train, job.settings.run.seed, progress.steps, Path(scratch))
        trainer = trainer_for(job.stage, model, processor, arguments, job.train)
        trainer.keep_statistics = job.lineage.parent is not None
        trainer.use(StepBatches(rows, plan, Counted(Collate(job.stage, processor)), any_of_all))
        resumed = (moments, scheduler) if moments is not None and scheduler is not None else None
        trainer.remove_callback(PrinterCallback)
        with monitor_for(job, trainer, model, progress, resume) as monitor:
            every, finish = job.train.checkpoint_every, partial(_finish, job, monitor)
            trainer.add_callback(monitor)
            trainer.add_callback(TrainingLoop(trainer, processor, progress, resumed, every, finish, report))
            trainer.train()


def _target(job: StageJob) -> list[float | None]:
    return [job.train.max_steps, job.train.epochs]


def _model(job: StageJob, resume: Path | None) -> tuple[StethoLMForConditionalGeneration, StethoLMProcessor]:
    """The model ready to train: of the parent (or fresh), with what ``resume`` has learnt since."""
    dtype = frozen_dtype(job.train.precision, job.train.use_gpu)
    parent = job.lineage.parent
    if parent is None:
        model, processor = build_model(job.settings.model, dtype=dtype, seed=job.settings.run.seed)
    else:
        model, processor = load_checkpoint(parent, job.storage, dtype=dtype)
    if not job.train.use_gpu:
        # On a CPU, short sequences train a quarter faster than with sdpa, whose backward is slow there.
        model.model.language_model.set_attn_implementation("eager")
    if job.stage == "dpo":
        add_lora(model, job.settings.model.lora, name="dpo")
    to_training_precision(model)
    if parent is not None:
        load_own_weights(model, parent, job.storage)
    set_trainable(model, job.stage)  # for dpo this keeps the parent's projector as the reference's
    if resume is not None:
        load_own_weights(model, resume, job.storage)
    return model, processor


def _prepare(job: StageJob, processor: StethoLMProcessor) -> Prepare:
    chosen = job.train.chosen if isinstance(job.train, DpoSettings) else "candidate"
    return Prepare(processor, job.train.max_tokens, answers_of(job.stage, chosen))


def _prepared(stream: CorpusStream, prepare: Prepare) -> Iterator[Row]:
    return (row | prepare(row) for row in stream.rows())


def _stream(job: StageJob, prepare: Prepare | None, progress: Progress, world: int) -> CorpusStream:
    ledger = Ledger.from_json(progress.ledger) if progress.ledger else None
    return training_rows(job, epochs=_epochs(job, world), rank=rank(), world_size=world, ledger=ledger, prepare=prepare)


def _epochs(job: StageJob, world: int) -> int:
    """Epochs to plan: as many as set, or with max_steps as many as that many steps can use up."""
    if job.train.max_steps is None:
        return math.ceil(job.train.epochs)
    rows = max(training_rows(job).rows_of(0), 1)
    # A padded sample has 16 tokens or more.
    a_step = job.train.tokens_per_batch // 16 if job.train.tokens_per_batch else job.train.batch_size
    return math.ceil(job.train.max_steps * a_step * world / rows) + 1


def _steps(job: StageJob, stream: CorpusStream, plan: BatchPlan, world: int, done: int) -> int:
    """Steps still to make: until max_steps if set, else until the slowest rank has read its epochs."""
    if job.train.max_steps is not None:
        return max(job.train.max_steps - done, 0)
    rows = max(stream.rows_of(worker) for worker in range(world))
    return math.ceil(plan.steps(rows, job.train.max_tokens) * job.train.epochs / math.ceil(job.train.epochs))


def _finish(job: StageJob, monitor: Monitor, folder: Path, progress: Progress) -> None:
    monitor.write(folder, progress.step)
    numbers: dict[str, Any] = {
        "steps": progress.step,
        "samples": progress.samples,
        "loss, first": progress.loss_first,
        "loss, last": progress.loss_last,
    }
    write_lineage(folder, job.lineage, job.settings, numbers)
