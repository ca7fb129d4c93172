"""What one training worker does, with or without Ray around it."""

from __future__ import annotations

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
from stetholm.model.on_cpu import train_on_cpu
from stetholm.settings import DpoSettings
from stetholm.training.arguments import trainer_arguments
from stetholm.training.batches import BatchPlan, Row, StepBatches
from stetholm.training.collate import Collate, Prepare, answers_of
from stetholm.training.job import StageJob
from stetholm.training.leaving import Votes
from stetholm.training.lineage import write_lineage
from stetholm.training.loop import Report, TrainingLoop
from stetholm.training.metrics import Counted
from stetholm.training.monitor import Monitor, monitor_for
from stetholm.training.planning import batch_plan, epochs_to_plan, planned_steps, share_of
from stetholm.training.precision import frozen_dtype, to_training_precision
from stetholm.training.ranks import rank, world_size
from stetholm.training.references import references
from stetholm.training.rows import training_rows
from stetholm.training.state import Progress, load_training_state
from stetholm.training.trainers import trainer_for


def run_stage(job: StageJob, resume: Path | None, report: Report) -> str | None:
    """Train this worker's part of ``job``; alone, or with torch.distributed initialised as one of several.

    Args:
        job: what to train.
        resume: folder of a checkpoint of this very stage to go on from.
        report: takes the checkpoints.

    Returns:
        Why the training was left before its end, with a checkpoint: see :mod:`stetholm.training.leaving`. None: it is
        done.
    """
    world = world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", world))))
    progress, moments, scheduler = load_training_state(resume) if resume else (Progress(), None, None)
    progress.seed = job.settings.run.seed
    model, processor = stage_model(job, resume)
    prepare = prepare_of(job, processor)
    # Beside training on a CPU, torch in each reading task would cost more memory than its microseconds a row are worth.
    in_stream = prepare if job.train.use_gpu else None
    planned = _replan(job, progress, world)
    stream = _stream(job, in_stream, progress, world)
    rows = stream.rows if in_stream else partial(_prepared, stream, prepare)
    plan = batch_plan(job)
    if planned:
        progress.steps = progress.step + _steps(job, stream, plan, prepare, world, progress.step)
    if progress.step >= progress.steps:
        return None
    with TemporaryDirectory(prefix="stetholm-train-") as scratch:
        arguments = trainer_arguments(job.train, job.settings.run.seed, progress.steps, Path(scratch))
        trainer = trainer_for(job.stage, model, processor, arguments, job.train)
        votes = Votes()
        trainer.keep_statistics = job.lineage.parent is not None
        collate = Collate(job.stage, processor, references(job, epochs_to_plan(job, world)))
        trainer.use(StepBatches(rows, plan, Counted(collate), votes))
        resumed = (moments, scheduler) if moments is not None and scheduler is not None else None
        trainer.remove_callback(PrinterCallback)
        with monitor_for(job, trainer, model, progress, resume) as monitor:
            every, finish = job.train.checkpoint_every, partial(_finish, job, monitor)
            trainer.add_callback(monitor)
            loop = TrainingLoop(trainer, processor, progress, resumed, every, finish, report, votes)
            trainer.add_callback(loop)
            trainer.train()
    return votes.reason() if loop.left else None


def _replan(job: StageJob, progress: Progress, world: int) -> bool:
    """Whether this is not what ``progress`` was planned for, so that steps are to be counted and rows dealt anew."""
    wanted: dict[str, Any] = {
        "workers": world,
        "target": [job.train.max_steps, job.train.epochs],
        "corpus": job.lineage.corpus_sha256,
        "batches": [job.train.batch_size, job.train.tokens_per_batch],
    }
    if all(getattr(progress, name) == value for name, value in wanted.items()):
        return False
    for name, value in wanted.items():
        setattr(progress, name, value)
    progress.dealt = progress.ledger
    return True


def stage_model(job: StageJob, resume: Path | None) -> tuple[StethoLMForConditionalGeneration, StethoLMProcessor]:
    """The model ready to train: of the parent (or fresh), with what ``resume`` has learnt since."""
    dtype = frozen_dtype(job.train.precision, job.train.use_gpu)
    parent = job.lineage.parent
    if parent is None:
        model, processor = build_model(job.settings.model, dtype=dtype, seed=job.settings.run.seed)
    else:
        model, processor = load_checkpoint(parent, job.storage, dtype=dtype)
    if not job.train.use_gpu:
        train_on_cpu(model.model.language_model, whole=job.train.zero_stage < 3)
    if job.stage == "dpo":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.settings.run.seed)  # or the adapter would depend on what this process did before
            add_lora(model, job.settings.model.lora, name="dpo")
    to_training_precision(model)
    if parent is not None:
        load_own_weights(model, parent, job.storage)
    set_trainable(model, job.stage)  # for dpo this keeps the parent's projector as the reference's
    if resume is not None:
        load_own_weights(model, resume, job.storage)
    return model, processor


def prepare_of(job: StageJob, processor: StethoLMProcessor) -> Prepare:
    """The tokenisation of the stage's rows."""
    chosen = job.train.chosen if isinstance(job.train, DpoSettings) else "candidate"
    return Prepare(processor, job.train.max_tokens, answers_of(job.stage, chosen))


def _prepared(stream: CorpusStream, prepare: Prepare) -> Iterator[Row]:
    return (row | prepare(row) for row in stream.rows())


def _stream(job: StageJob, prepare: Prepare | None, progress: Progress, world: int) -> CorpusStream:
    ledger, dealt = (Ledger.from_json(text) if text else Ledger() for text in (progress.ledger, progress.dealt))
    return training_rows(
        job,
        epochs=epochs_to_plan(job, world),
        rank=rank(),
        world_size=world,
        ledger=ledger,
        dealt=dealt,
        prepare=prepare,
    )


def _steps(job: StageJob, stream: CorpusStream, plan: BatchPlan, prepare: Prepare, world: int, done: int) -> int:
    """Steps still to make: until max_steps if set, else until the slowest rank has read its epochs."""
    if job.train.max_steps is not None:
        return max(job.train.max_steps - done, 0)
    steps = planned_steps(stream, plan, prepare, world)
    left = sum(sum(stream.rows_by_epoch(each)) for each in range(world)) / max(training_rows(job).rows_of(0), 1)
    return share_of(steps, job.train.epochs, left)


def _finish(job: StageJob, monitor: Monitor, folder: Path, progress: Progress) -> None:
    monitor.write(folder, progress.step)
    numbers: dict[str, Any] = {
        "steps": progress.step,
        "samples": progress.samples,
        "loss, first": progress.loss_first,
        "loss, last": progress.loss_last,
    }
    write_lineage(folder, job.lineage, job.settings, numbers)
