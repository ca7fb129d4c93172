"""Checkpoints in the real embedded storage: whole or not there, the last and the best kept."""

from __future__ import annotations

import multiprocessing as mp
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.errors import UserError
from stetholm.model.checkpoint import load_checkpoint
from stetholm.runs import start_checkpoint
from stetholm.settings import Settings
from stetholm.storage import Storage
from stetholm.training.checkpoints import MARKER, Checkpoints, Found

FILES = {MARKER: b"{}", "model.safetensors": bytes(1000), "training_state/state.json": b"{}"}


@pytest.fixture
def uri(storage: Storage, request: pytest.FixtureRequest) -> str:
    return storage.join("test-checkpoints", request.node.name.partition("[")[0])


def folder_of(path: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def steps(checkpoints: Checkpoints) -> list[int]:
    return [found.step for found in checkpoints.whole()]


def test_what_is_uploaded_is_found_by_anyone(storage: Storage, uri: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(storage, uri, keep=2)
    assert checkpoints.latest() is None and checkpoints.best() is None and checkpoints.whole() == []
    written = folder_of(tmp_path / "local")
    checkpoints.report({"step": 7, "loss": 1.5}, written)
    checkpoints.report({"step": 7, "loss": 1.5}, None)  # another rank
    assert not written.exists()
    found = Checkpoints(storage, uri, keep=2).latest()
    assert found == Found(7, f"{uri}/checkpoint_00000007")
    storage.download_dir(found.uri, tmp_path / "again")
    assert {name: (tmp_path / "again" / name).read_bytes() for name in FILES} == FILES


def test_the_last_and_the_best_are_kept(storage: Storage, uri: str, tmp_path: Path) -> None:
    local = folder_of(tmp_path)
    checkpoints = Checkpoints(storage, uri, keep=2)
    for step, loss in enumerate((3.0, 1.0, 2.0, 2.5, 1.0, 4.0, 5.0), start=1):
        checkpoints.upload(local, {"step": step, "loss": loss})
    assert steps(checkpoints) == [5, 6, 7]  # of the two equal ones the later
    assert checkpoints.best() == Found(5, checkpoints.uri_of(5))
    assert not any("00000002" in other for other in storage.list(uri))


def test_what_is_named_as_a_result_stays(storage: Storage, uri: str, tmp_path: Path) -> None:
    local = folder_of(tmp_path)
    for step in (1, 2, 3, 4):
        Checkpoints(storage, uri, keep=1, spare=[f"{uri}/checkpoint_00000002/"]).upload(
            local, {"step": step, "loss": -step}
        )
    assert steps(Checkpoints(storage, uri, keep=1)) == [2, 4]


def test_what_is_still_to_be_measured_waits(storage: Storage, uri: str, tmp_path: Path) -> None:
    local = folder_of(tmp_path)
    checkpoints = Checkpoints(storage, uri, keep=1, metric="val_loss")
    for step in (1, 2, 3):
        checkpoints.upload(local, {"step": step, "loss": 1.0})
    assert steps(checkpoints) == [1, 2, 3] and checkpoints.best() is None
    storage.write_json(f"{uri}/validation/00000001.json", {"val_loss": 0.5})
    storage.write_json(f"{uri}/validation/00000002.json", {"val_loss": 0.7})
    checkpoints.tidy()
    assert steps(checkpoints) == [1, 3]
    assert checkpoints.best() == Found(1, checkpoints.uri_of(1))
    for step in range(4, 9):
        checkpoints.upload(local, {"step": step, "loss": 1.0})
    assert steps(checkpoints) == [1, 4, 5, 6, 7, 8]  # not for ever, though nothing is measured any more


def test_half_checkpoints_are_not_there_and_go_away(storage: Storage, uri: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(storage, uri, keep=2)
    checkpoints.upload(folder_of(tmp_path), {"step": 1, "loss": 1.0})
    half, other = checkpoints.uri_of(2), f"{uri}/tensorboard/events"
    storage.write_bytes(f"{half}/model.safetensors", b"x")
    storage.write_bytes(other, b"x")
    assert checkpoints.latest() == Found(1, checkpoints.uri_of(1))
    with pytest.raises(UserError, match=r"no checkpoint at .*_00000002: there is no config\.json"):
        load_checkpoint(half, storage)
    with pytest.raises(UserError, match=r"model\.init_from: no checkpoint at .*_00000002 \(there is no config\.json"):
        start_checkpoint(Settings.model_validate({"model": {"init_from": half}}), storage)
    assert checkpoints.remove_halves() == [half]
    assert storage.list(half) == [] and storage.list(other) == [other]


def upload_forever(storage: Storage, uri: str, folder: Path) -> None:
    for step in range(1, 1000):
        Checkpoints(storage, uri, keep=1000).upload(folder, {"step": step, "loss": 1.0})


def test_an_uploader_that_is_killed_leaves_whole_ones_or_nothing(storage: Storage, uri: str, tmp_path: Path) -> None:
    """Real SIGKILL, in the middle of an upload: seen by its first object and by the missing rest."""
    names = [f"part-{number:02d}" for number in range(15)]
    folder = folder_of(tmp_path, {name: bytes(200_000) for name in names} | {MARKER: b"{}"})
    checkpoints = Checkpoints(storage, uri, keep=1000)
    child = mp.get_context("spawn").Process(target=upload_forever, args=(storage, uri, folder))
    child.start()
    deadline = time.monotonic() + 120
    while not (halves := half_ones(storage, uri)) or not checkpoints.whole():
        assert time.monotonic() < deadline and child.is_alive()
    child.kill()
    child.join()
    halves = half_ones(storage, uri)
    latest = checkpoints.latest()
    assert latest is not None and latest.uri not in halves
    for found in checkpoints.whole():
        assert {f"{found.uri}/{name}" for name in (*names, MARKER)} <= set(storage.list(found.uri))
    assert checkpoints.remove_halves() == sorted(halves)
    assert half_ones(storage, uri) == []
    checkpoints.upload(folder, {"step": latest.step + 1, "loss": 1.0})
    assert checkpoints.latest() == Found(latest.step + 1, checkpoints.uri_of(latest.step + 1))


def half_ones(storage: Storage, uri: str) -> list[str]:
    seen = storage.list(uri)
    folders = {each.removeprefix(f"{uri}/").partition("/")[0] for each in seen}
    return sorted(f"{uri}/{name}" for name in folders if f"{uri}/{name}/{MARKER}" not in seen)


@settings(max_examples=5)
@given(losses=st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=6), keep=st.integers(1, 3))
def test_kept_are_exactly_the_last_and_the_best(
    storage: Storage, tmp_path_factory: pytest.TempPathFactory, losses: list[float], keep: int
) -> None:
    local = folder_of(tmp_path_factory.mktemp("local"))
    checkpoints = Checkpoints(storage, storage.join("test-checkpoints", local.name), keep=keep)
    for step, loss in enumerate(losses):
        checkpoints.upload(local, {"step": step, "loss": loss})
    best = max(step for step, loss in enumerate(losses) if loss == min(losses))
    assert steps(checkpoints) == sorted({best, *range(len(losses))[-keep:]})
