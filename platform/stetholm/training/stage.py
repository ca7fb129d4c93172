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
    inputs = {
        "parent": job.lineage.parent,
        "corpus_sha256": job.lineage.corpus_sha256,
        "seed": settings.run.seed,
        "language_model": settings.model.language_model,
        "audio_encoder": settings.model.audio_encoder,
        "audio_encoder_weights": settings.model.audio_encoder_weights,
    }
    target = [job.train.max_steps, job.train.epochs]
    done = finished(settings, storage, stage, inputs)
    if done is not None and done["target"] == target:
        _require_same(job, str(done["output"]))
        return done
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
        settings={**settings.stage(stage).model_dump(mode="json"), "seed": settings.run.seed},
    )
    job = StageJob(stage, settings, storage, corpus, lineage)
    require_rows(job)
    require_trackers(job.train.trackers)
    require_validation(job)
    return job


def _require_same(job: StageJob, checkpoint: str) -> None:
    """Raise a UserError if the lineage of the finished stage's checkpoint tells of other settings than the job's."""
    lineage = f"{checkpoint}/lineage.json"
    before = job.storage.read_json(lineage).get("settings", {}) if job.storage.exists(lineage) else {}
    now = job.lineage.settings
    changed = sorted(key for key in before.keys() & now.keys() - HOW_MADE if before[key] != now[key])
    if changed:
        raise UserError(
            f"run {job.settings.run.name!r} has already done {job.stage!r} with other settings ({', '.join(changed)}): "
            "give the old ones, or choose another run.name"
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
