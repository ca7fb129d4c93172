"""Leases: exactly one holder, whoever asks when; what a dead process held is free again."""

from __future__ import annotations

import json
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
    storage.write_json(f"{prefix}/00000001-elsewhere", {**claim, "pid": ended.pid, "host": "another"})
    with pytest.raises(LeaseHeld, match=f"process {ended.pid} on another"), lease(storage, prefix, "work"):
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


def test_a_lost_lease_is_noticed(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    prefix = storage.join("test-lease/lost")
    with lease(storage, prefix, "work") as held:
        held.check()
        storage.remove_dir(prefix)
        with pytest.raises(LeaseHeld, match="lost its lease"):
            held.check()
