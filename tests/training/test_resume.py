"""A real training run whose worker is killed: the epochs end with each sample trained on exactly once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.train.recovery import train_workers
from stetholm.corpus.ledger import Ledger
from stetholm.corpus.shards import write_corpus
from stetholm.settings import Settings
from stetholm.storage import Storage
from stetholm.training.stage import train_stage
from tests.evaluation.corpus import rows

pytestmark = pytest.mark.usefixtures("ray_cluster")

RUN, EPOCHS = "killed", 2


@pytest.fixture(scope="module")
def samples(storage: Storage) -> set[str]:
    split = rows(range(12))
    write_corpus(storage, storage.join("test-resume"), {"train": split}, inputs={}, row_group_rows=4)
    return {row["sample_id"] for row in split}


def settings(storage: Storage, language_model: Path, **train: Any) -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": RUN},
            "corpus": {"uri": storage.join("test-resume")},
            "model": {"language_model": str(language_model)},
            "train": {"batch_size": 2, "log_every": 1, "checkpoint_every": 2, "max_failures": 1, **train},
        }
    )


def kill_a_worker_after_its_first_checkpoint(storage: Storage, killed: list[int]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if any(uri.endswith("/training_state/state.json") for uri in storage.list(storage.join("runs", RUN, "sft"))):
            victim = train_workers()[-1]
            victim.kill()
            killed.append(victim.pid)
            return
        time.sleep(0.05)


@pytest.mark.long
def test_each_sample_once_though_a_worker_is_killed_and_their_number_changes(
    storage: Storage, language_model: Path, samples: set[str]
) -> None:
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after_its_first_checkpoint, args=(storage, killed))
    killer.start()
    first = train_stage(settings(storage, language_model, epochs=1, workers=2), storage, "sft")
    killer.join()
    assert killed, "no worker was killed"
    progress = state(storage, first)
    assert first["samples"] == len(samples)  # counted in the steps that count, by every worker
    assert Ledger.from_json(progress["ledger"]).seen(0) == samples
    # Prolonged by an epoch, with another number of workers.
    second = train_stage(settings(storage, language_model, epochs=EPOCHS, workers=1), storage, "sft")
    ledger = Ledger.from_json(state(storage, second)["ledger"])
    assert second["samples"] == EPOCHS * len(samples)
    assert [ledger.seen(epoch) for epoch in range(EPOCHS)] == [samples] * EPOCHS
    assert 0 <= second["data_wait"] < 1 and second["data_start_seconds"] > 0


def state(storage: Storage, result: dict[str, Any]) -> dict[str, Any]:
    progress: dict[str, Any] = storage.read_json(f"{result['output']}/training_state/state.json")["progress"]
    return progress
