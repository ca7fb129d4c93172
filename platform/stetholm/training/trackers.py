"""Where the numbers of training go besides the terminal: TensorBoard, W&B, MLflow and Ray's own metrics.

What a tracker does happens in a thread of its own: training neither waits for it nor ends with it. Should one fail,
that is said once and the others go on; the curve is whole in each checkpoint's ``training_state/history.jsonl`` anyway.
A run that goes on appends to the same curves; steps that a tracker has seen before a crash are not given to it twice.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from stetholm.errors import UserError
from stetholm.runs import run_uri
from stetholm.settings import TrackerName
from stetholm.storage import Storage
from stetholm.training.history import Record, is_validation
from stetholm.training.job import StageJob

PACKAGES: dict[TrackerName, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
PROJECT = "stetholm"
"""W&B's project and MLflow's experiment, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another."""
UPLOAD_SECONDS = 30.0
"""Between two uploads of TensorBoard's file: object storage cannot append."""
SHUTDOWN_SECONDS = 60.0


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Raise a UserError if a tracker that is asked for is not installed; call it before anything starts."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"train.trackers has {name}, which is not installed: pip install 'stetholm-platform[trackers]' "
                "on every node, or leave it out"
            )


@dataclass(frozen=True)
class Place:
    """Whose numbers they are.

    Attributes:
        storage: open storage.
        uri: the stage's folder in it.
        run: run.name.
        stage: align, sft or dpo.
        settings: to be shown beside the curves, by name.
    """

    storage: Storage
    uri: str
    run: str
    stage: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the curve."""
        return f"{self.run}/{self.stage}"

    def identity(self) -> str:
        """Of the curve, the same however often the run goes on, kept beside it; another once that has been deleted."""
        uri = f"{self.uri}/tracking.json"
        if not self.storage.exists(uri):
            self.storage.write_json(uri, {"id": uuid.uuid4().hex})
        return str(self.storage.read_json(uri)["id"])


def place_of(job: StageJob) -> Place:
    """Where the numbers of ``job`` belong."""
    uri = run_uri(job.settings, job.storage, job.stage)
    return Place(job.storage, uri, job.settings.run.name, job.stage, job.lineage.settings)


class Tracker(Protocol):
    """Takes records in the order of their steps."""

    def log(self, record: Record) -> None:
        """Take a record: see :mod:`stetholm.training.history`."""

    def flush(self) -> None:
        """Make it visible."""

    def close(self) -> None:
        """The run ends here, at least for now."""


class TensorBoard:
    """Event files beside the run: ``<stage>/tensorboard/train`` and, of the evaluations, ``…/validation``.

    The file of a run that goes on is written anew from its history, so that no step stands in it twice.
    """

    def __init__(self, place: Place, history: Sequence[Record]) -> None:
        self._storage, self._uri = place.storage, f"{place.uri}/tensorboard"
        self._folder = TemporaryDirectory(prefix="stetholm-tensorboard-")
        self._storage.remove_dir(self._uri)
        self._writers: dict[str, Any] = {}
        for record in history:
            self.log(record)

    def log(self, record: Record) -> None:
        """Write to the local file."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name.removeprefix("val_"), simple_value=value) for name, value in numbers(record).items()
        ]
        event = Event(wall_time=record["time"], step=record["step"], summary=Summary(value=values))
        self._writer("validation" if is_validation(record) else "train").write_event(event)

    def flush(self) -> None:
        """Copy the files to storage."""
        for writer in self._writers.values():
            writer.flush()
        for file in Path(self._folder.name).rglob("*tfevents*"):
            name = file.relative_to(self._folder.name).as_posix()
            self._storage.write_bytes(f"{self._uri}/{name}", file.read_bytes())

    def close(self) -> None:
        """Copy a last time."""
        self.flush()
        for writer in self._writers.values():
            writer.close()
        self._folder.cleanup()

    def _writer(self, part: str) -> Any:
        """The file of ``part``. Not through SummaryWriter, whose flush does not wait for what is on its way."""
        from tensorboardX.event_file_writer import EventsWriter

        if part not in self._writers:
            folder = Path(self._folder.name) / part
            folder.mkdir()
            self._writers[part] = EventsWriter(str(folder / "events"))
        return self._writers[part]


class Wandb:
    """Weights & Biases; keys, project and mode (WANDB_MODE=offline) come from its own environment variables."""

    def __init__(self, place: Place, history: Sequence[Record]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=place.identity(),
            name=place.name,
            group=place.run,
            job_type=place.stage,
            config=dict(place.settings),
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(Path.home()),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Evaluations come after steps that are later than theirs, which W&B's own step does not allow.
        self._run.define_metric("train/*", step_metric="train/step")
        self._run.define_metric("val/*", step_metric="val/step")
        self._seen = _last_step(self._run.summary.get("train/step")), _last_step(self._run.summary.get("val/step"))

    def log(self, record: Record) -> None:
        """Send it."""
        validation = is_validation(record)
        if record["step"] > self._seen[validation]:
            part = "val" if validation else "train"
            values = {f"{part}/{name.removeprefix('val_')}": value for name, value in numbers(record).items()}
            self._run.log(values | {f"{part}/step": record["step"]})

    def flush(self) -> None:
        """W&B sends by itself."""

    def close(self) -> None:
        """Send the rest."""
        self._run.finish()


class Mlflow:
    """MLflow; MLFLOW_TRACKING_URI says where, as everywhere with it."""

    def __init__(self, place: Place, history: Sequence[Record]) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        where = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        identity = place.identity()
        runs = self._client.search_runs([where], f"tags.`stetholm.id` = '{identity}'")
        self._id = (runs[0] if runs else self._begin(where, place, identity)).info.run_id
        self._client.update_run(self._id, status="RUNNING")
        self._seen = self._last("train/loss"), self._last("val/loss")

    def _begin(self, experiment: str, place: Place, identity: str) -> Any:
        run = self._client.create_run(experiment, run_name=place.name, tags={"stetholm.id": identity})
        for name, value in place.settings.items():
            self._client.log_param(run.info.run_id, name, value)
        return run

    def _last(self, name: str) -> int:
        return max((point.step for point in self._client.get_metric_history(self._id, name)), default=-1)

    def log(self, record: Record) -> None:
        """Send it."""
        from mlflow.entities import Metric

        validation = is_validation(record)
        if record["step"] > self._seen[validation]:
            part, when = "val" if validation else "train", round(record["time"] * 1000)
            points = [
                Metric(f"{part}/{name.removeprefix('val_')}", value, when, record["step"])
                for name, value in numbers(record).items()
            ]
            self._client.log_batch(self._id, metrics=points)

    def flush(self) -> None:
        """Each record has been sent."""

    def close(self) -> None:
        """Mark the run as ended; going on marks it as running again."""
        self._client.set_terminated(self._id)


class RayMetrics:
    """Gauges of Ray's own metrics, ``stetholm_train_<name>``: in the dashboard and at each node's Prometheus port."""

    def __init__(self, place: Place, history: Sequence[Record]) -> None:
        self._tags = {"run": place.run, "stage": place.stage}
        self._gauges: dict[str, Any] = {}

    def log(self, record: Record) -> None:
        """Set the gauges."""
        from ray.util.metrics import Gauge

        for name, value in {**numbers(record), "step": record["step"]}.items():
            if name not in self._gauges:
                plain = re.sub(r"\W", "_", name)
                about = f"Training: {name.replace('_', ' ')} of the last logged interval"
                self._gauges[name] = Gauge(f"stetholm_train_{plain}", about, tag_keys=("run", "stage"))
            self._gauges[name].set(value, self._tags)

    def flush(self) -> None:
        """Ray collects them by itself."""

    def close(self) -> None:
        """The last values stay until the process ends."""


KINDS: dict[str, Callable[[Place, Sequence[Record]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "ray": RayMetrics,
}


class Trackers:
    """All of them, in one thread.

    Args:
        names: of :data:`KINDS`.
        place: whose numbers.
        history: records of a run that goes on.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        names: Sequence[str],
        place: Place,
        history: Sequence[Record],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stetholm-trackers")
        self._clock, self._flushed = clock, clock()
        self._open: dict[str, Tracker] = {}
        self._submit(self._begin, names, place, list(history))

    def log(self, record: Record) -> None:
        """Hand ``record`` to all; they may take it later."""
        self._submit(self._each, "log", record)
        if self._clock() - self._flushed >= UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make visible what has been logged, soon."""
        self._flushed = self._clock()
        self._submit(self._each, "flush")

    def close(self) -> None:
        """Let them finish; a tracker that does not within a minute is left."""
        last = self._submit(self._each, "close")
        try:
            last.result(SHUTDOWN_SECONDS)
        except TimeoutError:
            _say("trackers have not finished within a minute and are left")
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _submit(self, call: Callable[..., None], *arguments: Any) -> Future[None]:
        return self._thread.submit(call, *arguments)

    def _begin(self, names: Sequence[str], place: Place, history: Sequence[Record]) -> None:
        for name in names:
            try:
                self._open[name] = KINDS[name](place, history)
            except Exception as error:
                _say(f"{name} is left out: {type(error).__name__}: {error}")

    def _each(self, what: str, *arguments: Any) -> None:
        for name, tracker in list(self._open.items()):
            try:
                getattr(tracker, what)(*arguments)
            except Exception as error:
                del self._open[name]
                _say(f"{name} has failed and is left out from here: {type(error).__name__}: {error}")


def numbers(record: Record) -> dict[str, float]:
    """The numbers of a record, without its step and time."""
    return {
        name: float(value)
        for name, value in record.items()
        if name not in ("step", "time") and isinstance(value, int | float) and math.isfinite(value)
    }


def _last_step(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else -1


def _say(line: str) -> None:
    print(f"trackers: {' '.join(line.split())[:300]}", file=sys.stderr, flush=True)
