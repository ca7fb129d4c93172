"""Ray Train's entry into a worker. Torch and the trainers are imported in the workers only."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stetholm.job import find_user_error
from stetholm.training import leaving
from stetholm.training.checkpoints import Checkpoints, name_of
from stetholm.training.job import StageJob
from stetholm.training.validation import is_due

ASK_SECONDS = 0.5
"""Between two looks at whether the driver wants the workers to leave."""


def ray_worker(config: dict[str, Any]) -> str | None:
    """Ray Train's entry: the process group, the checkpoint to go on from, and where checkpoints go.

    Args:
        config: ``job``, and ``leave``, the key under which the driver asks the workers to leave.

    Returns:
        Why the stage was left before its end; None: it is done.
    """
    from stetholm.ray_session import quiet_data
    from stetholm.training.ranks import from_all, is_first, join_group
    from stetholm.training.worker import run_stage

    job: StageJob = config["job"]
    quiet_data()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train would print every report of every worker
    logging.getLogger("ray.train.v2._internal.util").addFilter(_unexpected)
    join_group(job.train.use_gpu)
    leaving.watch(_preempted)
    checkpoints = job.checkpoints()
    uri = None
    if is_first():
        _follow_driver(config["leave"])
        checkpoints.remove_halves()
        latest = checkpoints.latest()
        uri = latest.uri if latest is not None else None
    uri = from_all(uri)[0]  # the first rank's: all go on from the same one
    report = RayReport(job, checkpoints)
    with TemporaryDirectory(prefix="stetholm-resume-") as folder:
        if uri is not None:
            job.storage.download_dir(uri, Path(folder))
        reason = run_stage(job, Path(folder) if uri is not None else None, report)
    if reason is not None and is_first():
        _tell_leaving(config["leave"], reason)
    return reason


def _unexpected(record: logging.LogRecord) -> bool:
    """Not a traceback of an error that the driver tells in one line."""
    error = sys.exc_info()[1]
    return error is None or find_user_error(error) is None


class RayReport:
    """Hands checkpoints to Ray Train, which has them uploaded beside the training, one at a time.

    An upload that fails ends the run: what it raises becomes the worker's error.
    """

    def __init__(self, job: StageJob, checkpoints: Checkpoints) -> None:
        self._job, self._checkpoints = job, checkpoints
        self._idle = threading.Event()
        self._idle.set()

    def __call__(self, numbers: dict[str, Any], folder: Path | None) -> None:
        """See :data:`stetholm.training.loop.Report`; waits while the previous checkpoint is still on its way."""
        import ray.train
        from ray.train import CheckpointUploadMode

        def upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            try:
                self._checkpoints.upload(Path(checkpoint.path), numbers)
            finally:
                self._idle.set()
            stored = ray.train.get_context().get_storage()
            return ray.train.Checkpoint(stored.build_checkpoint_path_from_name(name), stored.storage_filesystem)

        self._idle.wait()
        if folder is not None:
            self._idle.clear()
        ray.train.report(
            numbers,
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)) if folder is not None else None,
            checkpoint_dir_name=name_of(numbers["step"]),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=True,
            validation=folder is not None and "left" not in numbers and is_due(self._job, numbers["step"]),
        )


def _tell_leaving(key: str, reason: str) -> None:
    """Have the evaluations leave too: Ray Train waits for them."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, reason)


def _preempted() -> str | None:
    """Whether Ray is about to take away the node of one of the workers.

    ``ray.train.get_preemption_info`` would ask all ranks to meet in an actor; we meet anyway, so what this rank has
    been told is enough.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    if info is None:
        return None
    return f"Ray is about to take away node {', '.join(node[:8] for node in info.preempted_node_ids)}"


def _follow_driver(key: str) -> None:
    """Have a thread leave when the driver says so: it lives on another machine, perhaps, and writes to Ray's store."""
    from ray.experimental.internal_kv import _internal_kv_get

    def look() -> None:
        pause = threading.Event()
        while not pause.wait(ASK_SECONDS):
            reason = _internal_kv_get(key)
            if reason:
                leaving.ask(reason.decode())
                return

    threading.Thread(target=look, name="leave", daemon=True).start()
