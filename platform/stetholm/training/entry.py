"""Ray Train's entry into a worker. Torch and the trainers are imported in the workers only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from stetholm.training.job import StageJob


def ray_worker(config: dict[str, Any]) -> None:
    """Ray Train's entry: the process group, the checkpoint to go on from, and where checkpoints go."""
    import deepspeed
    import ray.train

    from stetholm.ray_session import quiet_data
    from stetholm.training.worker import run_stage

    job: StageJob = config["job"]
    quiet_data()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train would print every report of every worker
    # Its shared-memory kernels are compiled on first use: a minute, and a worker killed meanwhile leaves a lock
    # that all later ones wait for. Gloo does what is needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if job.train.use_gpu else "gloo")
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        run_stage(job, None, _ray_report)
        return
    with checkpoint.as_directory() as folder:
        run_stage(job, Path(folder), _ray_report)


def _ray_report(numbers: dict[str, Any], folder: Path | None) -> None:
    import ray.train

    checkpoint = ray.train.Checkpoint.from_directory(str(folder)) if folder is not None else None
    ray.train.report(numbers, checkpoint=checkpoint, delete_local_checkpoint_after_upload=True)
