"""A run that breaks off and goes on is the run that never broke off: each stage in one process, without Ray Train.

The same for several workers that are killed: ``test_faults.py``, which takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stetholm.corpus.ledger import Ledger
from stetholm.corpus.shards import write_corpus
from stetholm.settings import Settings, StageName
from stetholm.storage import Storage
from stetholm.training import leaving
from stetholm.training.checkpoints import Checkpoints
from stetholm.training.history import FILE, from_lines
from stetholm.training.job import StageJob
from stetholm.training.lineage import STATE_FOLDER, Lineage
from tests.evaluation.corpus import rows

pytestmark = pytest.mark.usefixtures("ray_cluster", "alone")

EVERY = 4
"""Steps between checkpoints."""
KILLED = 6
"""The run breaks off at the next checkpoint from here."""


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def corpora(storage: Storage) -> dict[str, str]:
    split = rows(range(5))
    uris = {name: storage.join("test-going-on", name) for name in ("corpus", "pairs")}
    write_corpus(storage, uris["corpus"], {"train": split}, inputs={}, row_group_rows=4)
    pairs = [row | {"chosen": row["response"], "rejected": "I cannot tell."} for row in split]
    extra = [pa.field("chosen", pa.string()), pa.field("rejected", pa.string())]
    write_corpus(storage, uris["pairs"], {"train": pairs}, inputs={}, row_group_rows=4, extra=extra)
    return uris


Run = Callable[..., StageJob]


@pytest.fixture(scope="module")
def job(storage: Storage, language_model: Path, corpora: dict[str, str]) -> Run:
    """Makes the job of a stage under a run's name."""

    def make(stage: StageName, name: str, parent: str | None = None, **train: Any) -> StageJob:
        values = {"batch_size": 2, "epochs": 2, "log_every": 1, "checkpoint_every": EVERY, "keep_checkpoints": 9}
        settings = Settings.model_validate(
            {
                "run": {"name": f"going-on-{name}"},
                "model": {"language_model": str(language_model)},
                "train": {**values, "precision": "fp32", "trackers": (), **train},
                "align": {"caption_weight": 0.5, "tasks": ["Identification", "Classification", "Comparison"]},
            }
        )
        corpus = corpora["pairs" if stage == "dpo" else "corpus"]
        return StageJob(stage, settings, storage, corpus, Lineage(stage, name, parent, corpus, "sha", "code"))

    return make


def train(job: StageJob, report: Callable[..., None] | None = None) -> str | None:
    """Train, or go on from the latest checkpoint."""
    from tempfile import TemporaryDirectory

    from stetholm.training.worker import run_stage

    checkpoints = job.checkpoints()
    latest = checkpoints.latest()
    with TemporaryDirectory() as folder:
        if latest is not None:
            job.storage.download_dir(latest.uri, Path(folder))
        return run_stage(job, Path(folder) if latest else None, report or checkpoints.report)


def curve(checkpoints: Checkpoints) -> dict[int, float]:
    """Loss by step."""
    latest = checkpoints.latest()
    assert latest is not None
    return {
        record["step"]: record["loss"] for record in from_lines(checkpoints.storage.read_text(f"{latest.uri}/{FILE}"))
    }


def state(checkpoints: Checkpoints) -> dict[str, Any]:
    latest = checkpoints.latest()
    assert latest is not None
    progress: dict[str, Any] = checkpoints.storage.read_json(f"{latest.uri}/{STATE_FOLDER}/state.json")["progress"]
    return progress


@pytest.fixture(scope="module")
def sft(job: Run) -> StageJob:
    """An uninterrupted run of SFT."""
    whole = job("sft", "whole")
    assert train(whole) is None
    return whole


@pytest.mark.parametrize("stage", ["sft", *(pytest.param(stage, marks=pytest.mark.long) for stage in ("align", "dpo"))])
def test_the_curve_is_that_of_an_uninterrupted_run(stage: StageName, job: Run, sft: StageJob) -> None:
    latest = sft.checkpoints().latest()
    parent = latest.uri if latest is not None and stage == "dpo" else None
    size = {"tokens_per_batch": 256} if stage == "align" else {}
    whole = sft if stage == "sft" else job(stage, "whole", parent, **size)
    if whole is not sft:
        train(whole)
    broken = job(stage, "broken", parent, **size)
    checkpoints = broken.checkpoints()

    def report(numbers: dict[str, Any], folder: Path | None) -> None:
        if numbers["step"] >= KILLED:
            raise Killed
        checkpoints.report(numbers, folder)

    with pytest.raises(Killed):
        train(broken, report)
    assert curve(checkpoints).keys() == set(range(1, EVERY + 1))
    assert train(broken) is None
    expected = curve(whole.checkpoints())
    assert len(expected) > 2 * EVERY
    assert curve(checkpoints) == pytest.approx(expected, abs=1e-4)
    assert len(set(expected.values())) > EVERY  # not one number all along
    assert state(checkpoints)["ledger"] == state(whole.checkpoints())["ledger"]


def test_an_epoch_is_prolonged_by_half_of_one(job: Run) -> None:
    for epochs in (1, 1.5):
        prolonged = job("sft", "prolonged", epochs=epochs)
        assert train(prolonged) is None
    reached = state(prolonged.checkpoints())
    per_epoch = len(rows(range(5)))
    assert abs(reached["samples"] - 1.5 * per_epoch) <= 2  # a batch
    assert reached["seed"] == prolonged.settings.run.seed


@pytest.mark.long
def test_who_is_asked_leaves_with_a_checkpoint_of_that_step(job: Run, sft: StageJob) -> None:
    left = job("sft", "left")
    checkpoints = left.checkpoints()
    calls = iter(range(100))
    leaving.watch(lambda: "told so" if next(calls) >= 3 else None)
    try:
        assert train(left) == "told so"
    finally:
        leaving.forget()
    latest = checkpoints.latest()
    assert latest is not None and latest.step % EVERY  # none was due
    assert checkpoints.storage.read_json(f"{latest.uri}/metrics.json")["left"]  # nobody evaluates it
    assert train(left) is None
    assert curve(checkpoints) == pytest.approx(curve(sft.checkpoints()), abs=1e-4)
    assert len(Ledger.from_json(state(checkpoints)["ledger"]).seen(1)) == state(checkpoints)["samples"] / 2
