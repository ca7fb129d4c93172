"""A training stage as a Ray Train job: the driver's side."""

from __future__ import annotations

from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig

from stetholm.corpus.manifest import Manifest
from stetholm.errors import UserError
from stetholm.ray_session import ray_session
from stetholm.runs import corpus_uri, finished, read_result, record, run_uri, start_checkpoint
from stetholm.settings import Settings, StageName, TrainSettings
from stetholm.storage import Storage
from stetholm.training.entry import ray_worker
from stetholm.training.job import StageJob
from stetholm.training.lineage import STATE_FOLDER, Lineage, code_version
from stetholm.training.rows import require_rows


def train_stage(settings: Settings, storage: Storage, stage: StageName) -> dict[str, Any]:
    """Run ``stage`` of this run, or go on with it, or find that it is done.

    Returns:
        ``output`` (URI of the checkpoint), ``steps``, ``loss_first``, ``loss_last``, ``samples``,
        ``samples_per_second``, ``data_wait`` (the share of the steps' time in which training waited for data) and
        ``data_start_seconds`` (how long the first batch took).

    Raises:
        UserError: no corpus, no pairs, no checkpoint to start from, or the run was made from others.
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
        return done
    with ray_session():
        checkpoint = _fit(job)
    result = _result(storage, checkpoint) | {"target": target}
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
    return job


def _pairs(settings: Settings, storage: Storage) -> str:
    result = read_result(settings, storage, "prefer")
    if result is None:
        raise UserError(
            f"run {settings.run.name!r} has no preference pairs: run jobs/prefer.py with this run.name first"
        )
    return str(result["output"])


def _fit(job: StageJob) -> str:
    """Run the workers; URI of the last checkpoint."""
    run = run_uri(job.settings, job.storage)
    trainer = TorchTrainer(
        ray_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.train.workers,
            use_gpu=job.train.use_gpu,
            resources_per_worker={"CPU": _cpus(job.train)} | ({"GPU": 1} if job.train.use_gpu else {}),
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # Train v2 has more than its stub says
            name=job.stage,
            storage_path=job.storage.key(run),
            storage_filesystem=job.storage.arrow_writer(),
            checkpoint_config=CheckpointConfig(num_to_keep=job.train.keep_checkpoints),
            failure_config=FailureConfig(max_failures=job.train.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": worker_environment(job.train)},
        ),
    )
    result = trainer.fit()
    if result.checkpoint is None:
        raise RuntimeError(f"stage {job.stage} ended without a checkpoint")
    return f"s3://{result.checkpoint.path}"


def _cpus(train: TrainSettings) -> float:
    """CPUs of one worker: what Ray has, less one for reading, shared out; one is enough beside a GPU's own."""
    if train.cpus_per_worker is not None:
        return train.cpus_per_worker
    free = ray.cluster_resources().get("CPU", 1.0) - 1.0
    return max(0.25, min(1.0, free / train.workers))


def worker_environment(train: TrainSettings) -> dict[str, str]:
    """Environment variables of a training worker."""
    always = {
        "TRANSFORMERS_VERBOSITY": "error",
        # glibc keeps what is freed, by thread, for later: these bounds limit that. Below the size of activations they
        # would make every step ask the system for each tensor anew, which was measured to be three times slower.
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": str(64 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
        "PYTHONWARNINGS": "ignore::FutureWarning",  # torch's own, in code that is not ours
    }
    return always | ({} if train.use_gpu else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""})


def _result(storage: Storage, checkpoint: str) -> dict[str, Any]:
    progress = storage.read_json(f"{checkpoint}/{STATE_FOLDER}/state.json")["progress"]
    rate = progress["samples"] / progress["seconds"] if progress["seconds"] else 0.0
    return {
        "output": checkpoint,
        "steps": progress["step"],
        "loss_first": progress["loss_first"],
        "loss_last": progress["loss_last"],
        "samples": progress["samples"],
        "samples_per_second": round(rate, 3),
        "data_wait": round(progress["wait_seconds"] / progress["seconds"], 4) if progress["seconds"] else 0.0,
        "data_start_seconds": round(progress["start_seconds"], 2),
    }
