"""Ray Train's entry into a worker. Torch and the trainers are imported in the workers only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from stetholm.training.job import StageJob


def ray_worker(config: dict[str, Any]) -> None:
    """Ray Train's entry: the process group, the checkpoint to go on from, and where checkpoints go."""
    import ray.train

    from stetholm.ray_session import quiet_data
    from stetholm.training.ranks import join_group
    from stetholm.training.worker import run_stage

    job: StageJob = config["job"]
    quiet_data()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train would print every report of every worker
    join_group(job.train.use_gpu)
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
