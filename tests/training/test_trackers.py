"""Trackers for real: event files in storage, an MLflow store in files, W&B offline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stetholm.errors import UserError
from stetholm.training import trackers as module
from stetholm.training.trackers import Place, Trackers, require_trackers


def record(step: int, loss: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"step": step, "time": 1000.0 + step, "loss": loss, "tokens_per_s": 12.5, **more}


@pytest.fixture
def place(storage, request) -> Place:
    return Place(storage, storage.join("test-trackers", request.node.name, "sft"), "first", "sft", {"lr": 0.1})


def scalars(place: Place, folder: Path, part: str, tag: str = "loss") -> list[tuple[int, float, float]]:
    """What TensorBoard itself reads of the synced folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    place.storage.download_dir(f"{place.uri}/tensorboard", folder)
    events = accumulator.EventAccumulator(str(folder / part))
    events.Reload()
    return [(event.step, event.value, event.wall_time) for event in events.Scalars(tag)]


def test_tensorboard_reads_what_lies_beside_the_run(place, tmp_path):
    with_all = Trackers(["tensorboard"], place, [])
    with_all.log(record(1, 2.0))
    with_all.log(record(5, 1.5))
    with_all.log({"step": 5, "time": 1010.0, "val_loss": 1.75, "val_accuracy": 0.5})
    with_all.close()
    assert scalars(place, tmp_path, "train") == [(1, 2.0, 1001.0), (5, 1.5, 1005.0)]
    assert scalars(place, tmp_path, "train", "tokens_per_s")[0][1] == 12.5
    assert scalars(place, tmp_path, "validation") == [(5, 1.75, 1010.0)]  # the same tag: one chart in TensorBoard
    assert scalars(place, tmp_path, "validation", "accuracy")[0][1] == 0.5


def test_a_run_that_goes_on_has_each_step_once(place, tmp_path):
    before = Trackers(["tensorboard"], place, [])
    for step in (1, 5, 10, 15):  # 15 is after the last checkpoint: it is done again
        before.log(record(step))
    before.close()
    after = Trackers(["tensorboard"], place, [record(step) for step in (1, 5, 10)])
    for step in (15, 20):
        after.log(record(step, 0.5))
    after.close()
    assert [step for step, _, _ in scalars(place, tmp_path, "train")] == [1, 5, 10, 15, 20]
    assert scalars(place, tmp_path, "train")[-2][1] == 0.5


def test_uploads_happen_while_it_runs(place):
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    running = Trackers(["tensorboard"], place, [], clock)
    running.log(record(1))
    clock.now = module.UPLOAD_SECONDS
    running.log(record(2))
    running._thread.submit(lambda: None).result()  # behind what has been submitted
    assert any("tfevents" in uri for uri in place.storage.list(f"{place.uri}/tensorboard"))
    running.close()


def test_mlflow_goes_on_in_the_same_run(place, tmp_path, monkeypatch):
    client = pytest.importorskip("mlflow").MlflowClient
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for steps in ((1, 5, 10), (10, 15)):
        some = Trackers(["mlflow"], place, [])
        for step in steps:
            some.log(record(step))
        some.log({"step": steps[0], "time": 1.0, "val_loss": 0.5})
        some.close()
    experiment = client().get_experiment_by_name("stetholm")
    (run,) = client().search_runs([experiment.experiment_id])
    points = [point.step for point in client().get_metric_history(run.info.run_id, "train/loss")]
    assert points == [1, 5, 10, 15]
    assert [p.step for p in client().get_metric_history(run.info.run_id, "val/loss")] == [1, 10]
    assert run.data.params["lr"] == "0.1" and run.info.run_name == "first/sft" and run.info.status == "FINISHED"


def test_wandb_offline_writes_a_run_under_the_name_of_the_curve(place, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    some = Trackers(["wandb"], place, [])
    some.log(record(1, 2.0))
    some.log({"step": 1, "time": 1.0, "val_loss": 0.5})
    some.close()
    files = list(tmp_path.rglob("*.wandb"))
    assert [file.stem for file in files] == [f"run-{place.identity()}"]
    written = files[0].read_bytes()
    assert b"train/loss" in written and b"val/loss" in written and b"train/step" in written


def test_a_tracker_that_fails_is_named_and_the_others_go_on(place, tmp_path, monkeypatch, capsys):
    class Broken(module.RayMetrics):
        def log(self, record: Any) -> None:
            raise OSError("no route to host")

    monkeypatch.setitem(module.KINDS, "ray", Broken)
    both = Trackers(["ray", "tensorboard"], place, [])
    both.log(record(1))
    both.log(record(2))
    both.close()
    said = capsys.readouterr().err.splitlines()
    assert said == ["trackers: ray has failed and is left out from here: OSError: no route to host"]
    assert [step for step, _, _ in scalars(place, tmp_path, "train")] == [1, 2]


def test_numbers_that_are_none_are_left_out():
    kept = module.numbers(record(3, float("nan"), grad_norm=2, note="x"))
    assert kept == {"tokens_per_s": 12.5, "grad_norm": 2.0}


def test_what_is_not_installed_is_said_before_anything_starts(monkeypatch):
    require_trackers(["tensorboard"])
    monkeypatch.setitem(module.PACKAGES, "wandb", "no_such_package")
    with pytest.raises(UserError, match=r"train\.trackers has wandb, which is not installed: .*\[trackers\]"):
        require_trackers(["tensorboard", "wandb"])


def test_importing_trackers_brings_neither_torch_nor_the_trackers():
    """The driver does so, and is light."""
    code = "import sys, json, stetholm.training.trackers; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "tensorboardX", "wandb", "mlflow", "matplotlib"} & set(json.loads(found))
