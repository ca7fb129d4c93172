"""What ``make stop`` ends, and what it leaves alone."""

import json
import subprocess
import sys

import psutil
import pytest

from stetholm import processes

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STETHOLM_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def child():
    process = subprocess.Popen(SLEEP)
    yield process
    process.kill()
    process.wait()


def test_stop_ends_what_is_recorded_and_forgets_it(child):
    processes.record("serve", child.pid)
    assert [entry.what for entry in processes.records()] == ["serve"]
    assert [entry.pid for entry in processes.stop()] == [child.pid]
    assert not psutil.pid_exists(child.pid)
    assert processes.records() == []


def test_another_process_with_a_recorded_id_is_left_alone(child, home):
    made = processes.record("serve", child.pid)
    (home / "pids" / f"{child.pid}.json").write_text(json.dumps({**made.__dict__, "started": made.started - 100}))
    assert processes.stop() == []
    assert child.poll() is None


def test_damaged_records_do_not_matter(home, child):
    (home / "pids").mkdir()
    (home / "pids" / "7.json").write_text("{")
    processes.record("serve", child.pid)
    assert len(processes.records()) == 1


def test_run_becomes_the_command_and_keeps_its_status(home):
    ran = subprocess.run(
        [sys.executable, "-m", "stetholm.processes", "run", "probe", "--", sys.executable, "-c", "exit(7)"]
    )
    assert ran.returncode == 7
    assert len(list((home / "pids").iterdir())) == 1
    assert processes.records() == []
