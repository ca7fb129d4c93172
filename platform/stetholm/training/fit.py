"""A stage's Ray Train run: started, started again where its workers have left, and ended in order when it must end.

The workers leave with a checkpoint of their current step when Ray takes a node away or a worker is sent SIGTERM; the
run then starts them again, as often as that happens. When the driver itself is told to stop (SIGTERM, which is what
``ray job stop`` sends, or Ctrl-C), the workers leave and the job ends. What dies without a word is Ray Train's to start
again, ``train.max_failures`` times.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from concurrent.futures import Future
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put
from ray.train import CheckpointConfig, ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.execution.callback import WorkerCallback, WorkerGroupCallback
from ray.train.v2.api.config import LoggingConfig

from stetholm.errors import Stopped
from stetholm.job import find_user_error
from stetholm.roles import nodes_of
from stetholm.runs import run_uri
from stetholm.settings import TrainSettings
from stetholm.stopping import Stop, stop_signals
from stetholm.training import leaving
from stetholm.training.checkpoints import Found
from stetholm.training.entry import ray_worker
from stetholm.training.job import StageJob
from stetholm.training.validation import validation_config

LOOK_SECONDS = 0.2


def fit(job: StageJob) -> Found:
    """Run the workers until the stage is done; its last checkpoint.

    Raises:
        UserError: a worker has raised one; it is not tried again.
        Stopped: the driver was told to stop.
        ray.train.TrainingFailedError: workers have died more than ``train.max_failures`` times.
    """
    with stop_signals() as stop:
        while True:
            left = _attempt(job, stop)
            latest = job.checkpoints().latest()
            if latest is None:
                raise RuntimeError(f"stage {job.stage} ended without a checkpoint")
            if left is None:
                return latest
            if stop.reason is not None:
                raise Stopped(f"{stop.reason}: {_state(job, latest)}")
            _say(job, f"{left}: going on from step {latest.step} with new workers")


def _attempt(job: StageJob, stop: Stop) -> str | None:
    """One run of Ray Train; why its workers have left before the end, None if they have not."""
    key = f"stetholm/leave/{uuid.uuid4().hex}"
    # Ray Train's own list of checkpoints is not gone by: it names what retention removes and misses what a killed
    # process has uploaded last.
    job.storage.remove_dir(f"{run_uri(job.settings, job.storage, job.stage)}/{CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}")
    # In a thread, so that this one is free for signals; Ray Train would else take Ctrl-C as a reason to kill.
    running = _in_thread(_trainer(job, key))
    asked_at: float | None = None
    try:
        while not _done(running):
            if stop.reason is not None and asked_at is None:
                asked_at = time.monotonic()
                _internal_kv_put(key, stop.reason)
                _say(job, f"{stop.reason}: waiting for a checkpoint")
            if asked_at is not None:
                _require_patience(job, stop, asked_at)
        return running.result().return_value
    finally:
        _internal_kv_del(key)


def _done(running: Future[Any]) -> bool:
    try:
        running.exception(timeout=LOOK_SECONDS)
    except TimeoutError:
        return False
    return True


def _require_patience(job: StageJob, stop: Stop, asked_at: float) -> None:
    """Raise Stopped when the workers have had their time, or whoever sent the signal sends another."""
    over = time.monotonic() - asked_at > job.train.grace_seconds
    if not over and stop.times < 2:
        return
    why = f"the workers did not leave within train.grace_seconds={job.train.grace_seconds:g}" if over else "told twice"
    raise Stopped(f"{stop.reason}, {why}: {_state(job, job.checkpoints().latest())}")


def _state(job: StageJob, latest: Found | None) -> str:
    if latest is None:
        return "there is no checkpoint yet; the same line again begins anew"
    return f"the last checkpoint is of step {latest.step} ({latest.uri}); the same line again goes on from it"


def _say(job: StageJob, line: str) -> None:
    print(f"{job.stage}: {line}", file=sys.stderr, flush=True)


def _in_thread(trainer: TorchTrainer) -> Future[Any]:
    """Fit ``trainer`` in a thread that does not keep the process alive."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(trainer.fit())
        except BaseException as error:  # handed over: result() raises it
            future.set_exception(error)

    threading.Thread(target=run, name="fit", daemon=True).start()
    return future


def _trainer(job: StageJob, key: str) -> TorchTrainer:
    environment = worker_environment(job.train)
    # Ray Train's own annotations allow neither a function that returns something nor these kinds of callbacks.
    function: Any = ray_worker
    callbacks: list[Any] = [EndOnUserError(), HeedSigterm(job.train.grace_seconds)]
    return TorchTrainer(
        function,
        train_loop_config={"job": job, "leave": key},
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # Train v2 has more than its stub says
            num_workers=job.train.workers,
            use_gpu=job.train.use_gpu,
            resources_per_worker={"CPU": _cpus(job.train)} | ({"GPU": 1} if job.train.use_gpu else {}),
            label_selector=nodes_of("trainer", job.train.label_selector) or None,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=job.stage,
            storage_path=job.storage.key(run_uri(job.settings, job.storage)),
            storage_filesystem=job.storage.arrow_writer(),
            checkpoint_config=CheckpointConfig(num_to_keep=None),  # see Checkpoints
            failure_config=FailureConfig(max_failures=job.train.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": environment},
            callbacks=callbacks,
        ),
        validation_config=validation_config(job, environment, key),
    )


class EndOnUserError(WorkerGroupCallback):
    """Ends the run when a worker raises a UserError: trying again would bring the same error, minutes later."""

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Look at what the workers say (in Ray Train's controller).

        Raises:
            ControllerError: which Ray Train does not take for a failure of workers; it carries the UserError.
        """
        for error in worker_group_status.errors.values():
            known = find_user_error(error)
            if known is not None:
                raise ControllerError(known)


class HeedSigterm(WorkerCallback):
    """SIGTERM to a worker asks all to leave. Runs in each worker's main thread, where signals are taken."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds

    def after_init_train_context(self) -> None:
        """Before training begins."""
        leaving.heed_sigterm(self._grace_seconds)


def _cpus(train: TrainSettings) -> float:
    """CPUs of one worker: what Ray has, less one for reading, shared out, at most one.

    One beside a GPU, and where no node has come yet: a fraction would put all workers onto the first one.
    """
    if train.cpus_per_worker is not None:
        return train.cpus_per_worker
    cpus = ray.cluster_resources().get("CPU", 0.0)
    if train.use_gpu or not cpus:
        return 1.0
    return max(0.25, min(1.0, (cpus - 1.0) / train.workers))


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
