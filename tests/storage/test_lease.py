"""Leases: exactly one holder, whoever asks when; what a dead process held is free again."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from datetime import datetime, timedelta

import pytest

from stetholm.storage import Storage
from stetholm.storage import lease as leases
from stetholm.storage.lease import LeaseHeld, lease


def test_one_of_many_gets_it(storage: Storage) -> None:
    prefix = storage.join("test-lease/many")
    start, inside = threading.Barrier(6), threading.Semaphore(1)
    results: list[str] = []

    def ask() -> None:
        start.wait()
        try:
            with lease(storage, prefix, "work"):
                assert inside.acquire(blocking=False), "two holders at once"
                all_asked.wait()
                inside.release()
            results.append("held")
        except LeaseHeld:
            results.append("refused")
            if results.count("refused") == 5:
                all_asked.set()

    all_asked = threading.Event()
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held"] + ["refused"] * 5
    assert storage.list(prefix) == []


def test_it_can_be_taken_again_and_says_who_has_it(storage: Storage) -> None:
    prefix = storage.join("test-lease/again")
    with (
        lease(storage, prefix, "ingest into x") as held,
        pytest.raises(LeaseHeld, match=r"^storage|ingest into x: process \d+ on .+ \(since .+\) is at it"),
        lease(storage, prefix, "ingest into x"),
    ):
        held.check()
    with lease(storage, prefix, "ingest into x"):
        pass


def test_of_a_process_of_this_machine_that_died(storage: Storage) -> None:
    prefix = storage.join("test-lease/died")
    with lease(storage, prefix, "work") as held:
        claim = json.loads(storage.read_bytes(held._uri(held._name)))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    storage.write_json(f"{prefix}/00000001-dead", {**claim, "pid": ended.pid})
    with lease(storage, prefix, "work"):
        assert not storage.exists(f"{prefix}/00000001-dead")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats and waits of parts of a second."""
    for name, seconds in {"BEAT_SECONDS": 0.05, "_WATCH_SECONDS": 0.2, "_POLL_SECONDS": 0.05}.items():
        monkeypatch.setattr(leases, name, seconds)


@pytest.mark.usefixtures("quick")
def test_one_elsewhere_that_writes_its_claim_anew_has_it(
    storage: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine: it cannot be told at once whether it lives."""
    prefix = storage.join("test-lease/elsewhere")
    monkeypatch.setattr(leases, "_is_here", lambda owner: False)
    with (
        lease(storage, prefix, "run 'x'", job="sft"),
        pytest.raises(LeaseHeld, match=r"^run 'x': process \d+ on \S+ \(sft, since .+\) is at it; wait until"),
        lease(storage, prefix, "run 'x'", job="sft"),
    ):
        pass
    assert storage.list(prefix) == []
    assert "may have died: waiting for a sign of it, 0 s of 240 s" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_one_elsewhere_that_died_has_it_no_longer(
    storage: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "STALE_SECONDS", 2.0)
    prefix = storage.join("test-lease/gone")
    storage.write_json(f"{prefix}/00000001-lost", {"host": "another", "pid": 7, "job": "sft"})
    with lease(storage, prefix, "run 'x'"):  # as soon as the claim is old enough
        assert not storage.exists(f"{prefix}/00000001-lost")
    assert capsys.readouterr().err.startswith(
        "run 'x': process 7 on another (sft, since ?) was at it and may have died"
    )


@pytest.mark.usefixtures("quick")
def test_a_child_process_holds_it_in_its_parents_place(storage: Storage) -> None:
    prefix = storage.join("test-lease/lent")
    code = (
        "import sys; from stetholm.storage import default_storage; from stetholm.storage.lease import lease\n"
        "with lease(default_storage(), sys.argv[1], 'work', job='sft', claim=sys.argv[2]) as held: held.check()"
    )

    def held_by() -> dict[str, object]:
        (claim,) = storage.list(prefix)
        return dict(storage.read_json(claim))

    with lease(storage, prefix, "work", job="pipeline") as held:
        with held.lend() as claim:
            command = [sys.executable, "-c", code, prefix, claim]
            child = subprocess.Popen(command, cwd="/", stderr=subprocess.PIPE)
            assert child.communicate()[1] == b"" and child.returncode == 0
            assert held_by().items() >= {"job": "sft", "pid": child.pid}.items()
        assert held_by()["job"] == "pipeline"
        held.check()
        with pytest.raises(LeaseHeld), lease(storage, prefix, "work", claim="s3://other/00000001-x"):
            pass
    assert storage.list(prefix) == []
    with pytest.raises(LeaseHeld, match="lost its lease"), lease(storage, prefix, "work", claim=claim):
        pass


def test_of_a_machine_that_fell_silent(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = storage.join("test-lease/silent")
    storage.write_json(f"{prefix}/choosing-lost", {"host": "another"})
    storage.write_json(f"{prefix}/00000007-lost", {"host": "another"})
    real = Storage.written

    def later(self: Storage, uri: str) -> dict[str, datetime]:
        """As if our own claim were written five minutes from now."""
        ages = real(self, uri)
        return {name: at if "lost" in name else at + timedelta(minutes=5) for name, at in ages.items()}

    monkeypatch.setattr(Storage, "written", later)
    with lease(storage, prefix, "work"):
        assert not any("lost" in name for name in storage.list(prefix))


def test_of_a_machine_that_died_while_it_took_a_number(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "STALE_SECONDS", 2.0)
    prefix = storage.join("test-lease/choosing")
    storage.write_json(f"{prefix}/choosing-lost", {"host": "another"})
    with lease(storage, prefix, "work"):  # after some waiting, as by our own clock nothing would ever change
        assert not storage.exists(f"{prefix}/choosing-lost")


@pytest.mark.usefixtures("quick")
def test_a_lost_lease_is_noticed(storage: Storage) -> None:
    prefix = storage.join("test-lease/lost")
    told: queue.Queue[LeaseHeld] = queue.Queue()
    with lease(storage, prefix, "work", on_lost=told.put) as held:
        held.check()
        storage.remove_dir(prefix)
        assert "lost its lease" in str(told.get(timeout=60))
        with pytest.raises(LeaseHeld, match="lost its lease"):
            held.check()
