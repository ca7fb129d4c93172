"""Faults of a whole Ray Train run: workers and drivers that are killed or told to go. Minutes; ``make test-long``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from benchmarks.train.recovery import train_workers
from stetholm.corpus.ledger import Ledger
from stetholm.corpus.shards import write_corpus
from stetholm.runs import record, run_uri
from stetholm.settings import Settings, StageName
from stetholm.storage import Storage
from stetholm.training.checkpoints import MARKER, Checkpoints
from stetholm.training.history import FILE, from_lines
from stetholm.training.lineage import STATE_FOLDER
from stetholm.training.stage import train_stage
from tests.evaluation.corpus import rows

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
EVERY = 4


@pytest.fixture(scope="module")
def corpora(storage: Storage) -> dict[str, str]:
    split = rows(range(24))
    uris = {name: storage.join("test-faults", name) for name in ("corpus", "pairs")}
    write_corpus(storage, uris["corpus"], {"train": split}, inputs={}, row_group_rows=4)
    pairs = [row | {"chosen": row["response"], "rejected": "I cannot tell."} for row in split]
    extra = [pa.field("chosen", pa.string()), pa.field("rejected", pa.string())]
    write_corpus(storage, uris["pairs"], {"train": pairs}, inputs={}, row_group_rows=4, extra=extra)
    return uris


@pytest.fixture(scope="module")
def tree(storage: Storage, language_model: Path, corpora: dict[str, str]) -> Callable[..., Settings]:
    """Settings of a run by its name."""

    def make(name: str, parent: str | None = None, **train: Any) -> Settings:
        values = {"tokens_per_batch": 512, "epochs": 2, "log_every": 1, "checkpoint_every": EVERY, "workers": 2}
        settings = Settings.model_validate(
            {
                "run": {"name": name},
                "corpus": {"uri": corpora["corpus"]},
                "model": {"language_model": str(language_model), "init_from": parent},
                "train": {**values, "precision": "fp32", "trackers": (), **train},
                "align": {"tasks": ["Identification", "Classification", "Comparison"]},
                "dpo": {"tokens_per_batch": 768},  # three rows a sample
            }
        )
        record(settings, storage, "prefer", {"output": corpora["pairs"]}, {})
        return settings

    return make


def checkpoints_of(storage: Storage, settings: Settings, stage: StageName) -> Checkpoints:
    return Checkpoints(storage, run_uri(settings, storage, stage), keep=2)


def curve(storage: Storage, output: str) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in from_lines(storage.read_text(f"{output}/{FILE}"))}


def ledger(storage: Storage, output: str) -> Ledger:
    return Ledger.from_json(storage.read_json(f"{output}/{STATE_FOLDER}/state.json")["progress"]["ledger"])


def until(found: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


class Sender(threading.Thread):
    """Sends a signal to one of the two workers, and waits until there are new ones.

    Args:
        checkpoints: of the run.
        number: of the signal.
        place: of the worker, by the order in which they were started.
        after: whole checkpoints' worth of steps that are there by then; 0: the workers are there, no checkpoint is.
        delay: seconds since then.
    """

    def __init__(self, checkpoints: Checkpoints, number: int, place: int, after: int, delay: float) -> None:
        super().__init__(daemon=True)
        self._checkpoints, self._number, self._place = checkpoints, number, place
        self._after, self._delay = after, delay
        self._others = pids()
        self.sent_to: int | None = None
        self.sent_at: int | None = None
        """Step of the last checkpoint then; 0: there was none."""
        self.started: set[int] = set()
        """The workers that came afterwards."""

    def run(self) -> None:
        workers = until(lambda: len(found := sorted(pids() - self._others)) == 2 and found)
        until(lambda: self._step() >= EVERY * self._after)
        time.sleep(self._delay)
        self.sent_at, self.sent_to = self._step(), workers[self._place]
        psutil.Process(self.sent_to).send_signal(self._number)
        self.started = until(lambda: pids() - self._others - set(workers))

    def _step(self) -> int:
        latest = self._checkpoints.latest()
        return 0 if latest is None else latest.step


def pids() -> set[int]:
    return {process.pid for process in train_workers()}


@pytest.fixture(scope="module")
def whole(storage: Storage, ray_cluster: None, tree: Callable[..., Settings]) -> Callable[[StageName], dict[str, Any]]:
    """The result of an uninterrupted run of a stage."""
    results: dict[str, dict[str, Any]] = {}

    def run(stage: StageName) -> dict[str, Any]:
        if stage not in results:
            parent = run("sft")["output"] if stage == "dpo" else None
            results[stage] = train_stage(tree(f"faults-whole-{stage}", parent), storage, stage)
        return results[stage]

    return run


@pytest.mark.parametrize(
    ("stage", "number", "place", "after", "delay"),
    [
        ("align", signal.SIGKILL, 1, 1, 0.3),
        ("sft", signal.SIGKILL, 0, 0, 2.0),
        ("sft", signal.SIGTERM, 1, 1, 0.1),
        ("dpo", signal.SIGKILL, 0, 1, 0.0),
    ],
)
def test_a_worker_dies_or_is_told_to_go(
    stage: StageName,
    number: int,
    place: int,
    after: int,
    delay: float,
    storage: Storage,
    tree: Callable[..., Settings],
    whole: Callable[[StageName], dict[str, Any]],
) -> None:
    """The run goes on by itself; the curve is that of the uninterrupted one."""
    expected = whole(stage)
    parent = whole("sft")["output"] if stage == "dpo" else None
    # Leaving on SIGTERM is no failure.
    settings = tree(f"faults-{stage}-{number}", parent, max_failures=0 if number == signal.SIGTERM else 1)
    sender = Sender(checkpoints_of(storage, settings, stage), number, place, after, delay)
    sender.start()
    result = train_stage(settings, storage, stage)
    assert sender.sent_to is not None and not psutil.pid_exists(sender.sent_to)
    assert sender.sent_at == 0 if after == 0 else EVERY * after <= sender.sent_at < expected["steps"]
    assert sender.started  # others came, and finished it
    assert result["samples"] == expected["samples"]
    assert ledger(storage, result["output"]) == ledger(storage, expected["output"])
    assert curve(storage, result["output"]) == pytest.approx(curve(storage, expected["output"]), abs=1e-4)


@pytest.fixture
def driver(tmp_path: Path, storage: Storage, tree: Callable[..., Settings]) -> Iterator[Callable[[], Any]]:
    """Starts ``jobs/sft.py`` as a process of its own, with a Ray of its own."""
    settings = tree("faults-driver", max_failures=0)
    values = [
        "run.name=faults-driver",
        f"corpus.uri={settings.corpus.uri}",
        f"model.language_model={settings.model.language_model}",
        *(
            f"train.{name}={json.dumps(getattr(settings.train, name))}"
            for name in sorted(settings.train.model_fields_set)
        ),
    ]
    command = [sys.executable, str(ROOT / "jobs" / "sft.py"), *(word for value in values for word in ("--set", value))]
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ), text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_the_driver_is_told_to_stop_and_then_killed(
    storage: Storage, tree: Callable[..., Settings], driver: Callable[[], Any]
) -> None:
    """SIGTERM, then SIGKILL in the midst of an upload; the same line again goes on each time."""
    checkpoints = checkpoints_of(storage, tree("faults-driver"), "sft")
    first = driver()
    before = until(checkpoints.latest)
    first.terminate()
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 1
    told = errors.splitlines()[-1]
    left = checkpoints.latest()
    assert left is not None and left.step >= before.step
    assert told.startswith(f"sft: stopped by SIGTERM: the last checkpoint is of step {left.step} ")
    assert not half_ones(checkpoints)

    second = driver()
    until(lambda: half_ones(checkpoints))
    second.kill()
    second.communicate(timeout=300)
    again = checkpoints.latest()
    assert again is not None and again.step >= left.step

    third = driver()
    output, errors = third.communicate(timeout=600)
    assert third.returncode == 0, errors
    result = json.loads(output.splitlines()[-1].removeprefix("RESULT "))
    assert not half_ones(checkpoints)
    assert ledger(storage, result["output"]).epochs == [0, 1]
    assert result["samples"] == sum(len(ledger(storage, result["output"]).seen(epoch)) for epoch in (0, 1))
    assert list(curve(storage, result["output"])) == list(range(1, result["steps"] + 1))


def half_ones(checkpoints: Checkpoints) -> set[str]:
    seen = [uri.removeprefix(f"{checkpoints.uri}/") for uri in checkpoints.storage.list(checkpoints.uri)]
    folders = {name.partition("/")[0] for name in seen if name.startswith("checkpoint_") and "/" in name}
    return {name for name in folders if f"{name}/{MARKER}" not in seen}
