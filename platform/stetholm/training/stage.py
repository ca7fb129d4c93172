"""A training stage as a Ray Train job: the driver's side."""

from __future__ import annotations

from typing import Any

from stetholm.corpus.manifest import Manifest
from stetholm.errors import UserError
from stetholm.ray_session import ray_session
from stetholm.runs import corpus_uri, finished, read_result, record, start_checkpoint
from stetholm.settings import DpoSettings, Settings, StageName
from stetholm.storage import Storage
from stetholm.training.checkpoints import Found
from stetholm.training.ending import complete_curves, evaluate_the_rest
from stetholm.training.fit import fit, worker_environment
from stetholm.training.job import StageJob
from stetholm.training.lineage import STATE_FOLDER, Lineage, code_version
from stetholm.training.rows import require_rows
from stetholm.training.trackers import require_trackers
from stetholm.training.validation import require_validation

HOW_MADE = frozenset(
    {
        *("workers", "use_gpu", "cpus_per_worker", "label_selector"),
        *("zero_stage", "offload", "gradient_checkpointing", "precision"),
        *("max_steps", "epochs"),  # a larger one goes on
        *("checkpoint_every", "keep_checkpoints", "max_failures", "grace_seconds", "log_every", "trackers"),
        *("divergence", "divergence_steps", "evaluate_every", "evaluate_samples", "evaluate_cpus", "evaluate_gpu"),
        "reference",
    }
)
"""Settings of a stage that do not make a finished one another."""

MENDED = HOW_MADE | {
    *("learning_rate", "encoder_learning_rate", "warmup_fraction", "max_grad_norm"),
    *("batch_size", "tokens_per_batch", "max_tokens"),
}
"""Settings with which a stage that has been begun goes on: what the messages of a run gone wrong say to change."""


def train_stage(settings: Settings, storage: Storage, stage: StageName) -> dict[str, Any]:
    """Run ``stage`` of this run, or go on with it, or find that it is done.

    Returns:
        ``output`` (URI of the last checkpoint, or of the best where checkpoints are evaluated), ``best`` (of the one
        with the lowest loss), ``steps``, ``loss_first``, ``loss_last``, ``samples``, ``samples_per_second``,
        ``data_wait`` (the share of the steps' time in which training waited for data) and ``data_start_seconds`` (how
        long the first batch took).

    Raises:
        UserError: no corpus, no pairs, no checkpoint to start from, or the run was made from others.
        Stopped: the job was told to stop; its workers have left with a checkpoint, if there was time.
    """
    job = _job(settings, storage, stage)
    inputs = {"parent": job.lineage.parent, "corpus_sha256": job.lineage.corpus_sha256, **_beginning(settings)}
    target = [job.train.max_steps, job.train.epochs]
    done = finished(settings, storage, stage, inputs)
    if done is not None and done["target"] == target:
        _require_same(job, str(done["output"]))
        return done
    _require_same_beginning(job)
    with ray_session():
        if isinstance(job.train, DpoSettings) and job.train.reference == "ahead":
            from stetholm.training.ahead import ensure_references  # torch: not in the driver, if it can be helped

            ensure_references(job)
        checkpoint = fit(job)
        evaluate_the_rest(job, checkpoint, worker_environment(job.train))
    complete_curves(job, checkpoint.uri)
    result = _result(job, checkpoint) | {"target": target}
    record(settings, storage, stage, result, inputs)
    return result


def _beginning(settings: Settings) -> dict[str, Any]:
    """What a fresh model is made from."""
    names = ("language_model", "audio_encoder", "audio_encoder_weights")
    return {"seed": settings.run.seed, **{name: getattr(settings.model, name) for name in names}}


def _job(settings: Settings, storage: Storage, stage: StageName) -> StageJob:
    corpus = _pairs(settings, storage) if stage == "dpo" else corpus_uri(settings, storage)
    parent = start_checkpoint(settings, storage, before=stage)
    if parent is None and stage == "dpo":
        raise UserError("dpo needs an SFT checkpoint: run jobs/sft.py with this run.name or set model.init_from=<uri>")
    if parent is not None and parent.startswith("s3://") and not storage.exists(f"{parent.rstrip('/')}/config.json"):
        raise UserError(f"model.init_from: there is no checkpoint at {parent}")
    manifest = Manifest.load(storage, corpus)
    lineage = Lineage(
        stage,
        settings.run.name,
        parent,
        corpus,
        manifest.sha256,
        code_version(),
        counts={name: split.counts for name, split in manifest.splits.items()},
        settings={**settings.stage(stage).model_dump(mode="json"), **_beginning(settings)},
    )
    job = StageJob(stage, settings, storage, corpus, lineage)
    require_rows(job)
    require_trackers(job.train.trackers)
    require_validation(job)
    return job


def _require_same(job: StageJob, checkpoint: str) -> None:
    """Raise a UserError if the lineage of the finished stage's checkpoint tells of other settings than the job's."""
    _refuse("already done", job, _changed(_lineage(job, checkpoint), job, HOW_MADE))


def _require_same_beginning(job: StageJob) -> None:
    """Raise a UserError if the stage has been begun from another start, or with another loss, than the job's.

    The corpus may have changed: a message may have said to leave a sample out, and the ledger goes by samples.
    """
    latest = job.checkpoints().latest()
    if latest is None:
        return
    lineage = _lineage(job, latest.uri)
    parent = ["parent"] if lineage.get("parent", job.lineage.parent) != job.lineage.parent else []
    _refuse("begun", job, parent + _changed(lineage, job, MENDED))


def _changed(lineage: dict[str, Any], job: StageJob, free: frozenset[str]) -> list[str]:
    before, now = lineage.get("settings", {}), job.lineage.settings
    return [key for key in before.keys() & now.keys() - free if before[key] != now[key]]


def _lineage(job: StageJob, checkpoint: str) -> dict[str, Any]:
    uri = f"{checkpoint}/lineage.json"
    known: dict[str, Any] = job.storage.read_json(uri) if job.storage.exists(uri) else {}
    return known


def _refuse(what: str, job: StageJob, changed: list[str]) -> None:
    if changed:
        raise UserError(
            f"run {job.settings.run.name!r} has {what} {job.stage!r} with other settings "
            f"({', '.join(sorted(changed))}): give the old ones, or choose another run.name"
        )


def _pairs(settings: Settings, storage: Storage) -> str:
    result = read_result(settings, storage, "prefer")
    if result is None:
        raise UserError(
            f"run {settings.run.name!r} has no preference pairs: run jobs/prefer.py with this run.name first"
        )
    return str(result["output"])


def _result(job: StageJob, checkpoint: Found) -> dict[str, Any]:
    progress = job.storage.read_json(f"{checkpoint.uri}/{STATE_FOLDER}/state.json")["progress"]
    rate = progress["samples"] / progress["seconds"] if progress["seconds"] else 0.0
    best = job.checkpoints().best() or checkpoint
    return {
        "output": (checkpoint if job.train.evaluate_every is None else best).uri,
        "best": best.uri,
        "steps": progress["step"],
        "loss_first": progress["loss_first"],
        "loss_last": progress["loss_last"],
        "samples": progress["samples"],
        "samples_per_second": round(rate, 3),
        "data_wait": round(progress["wait_seconds"] / progress["seconds"], 4) if progress["seconds"] else 0.0,
        "data_start_seconds": round(progress["start_seconds"], 2),
    }
