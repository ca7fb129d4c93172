"""``python jobs/inspect.py``: its RESULT line and status, and a name that hides the standard library's module."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stetholm.storage import Storage
from tests.corpus.inspected import entry, make, row

ROOT = Path(__file__).parents[2]
STANDARD = os.path.join(os.path.dirname(os.__file__), "inspect.py")
SAME = (
    "import dataclasses, inspect, pickle, sys; import inspect as again; "
    "assert inspect is again is sys.modules['inspect'] is dataclasses.inspect; "
    "assert pickle.loads(pickle.dumps(inspect.Parameter)) is inspect.Parameter; "
    "assert str(inspect.signature(len)) == '(obj, /)'; assert not hasattr(inspect, 'main'); "
    "print(inspect.__file__)"
)


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_done_and_its_result(storage: Storage) -> None:
    rows = {"train": [row("a", 1, patient="p")], "test": [row("b", 2, patient="p")]}
    uri = make(storage, "job", rows, [entry("a", patient="p"), entry("b", patient="p")])
    done = python("jobs/inspect.py", "--set", "run.name=job-inspect", "--set", f"corpus.uri={uri}")
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    result = json.loads(last.removeprefix("RESULT "))
    output = storage.join("runs/job-inspect/inspect")
    expected = {"job": "inspect", "output": output, "pairs": 2, "recordings": 2, "patients": 1, "warnings": 1}
    assert {key: result[key] for key in expected} == expected and result["seconds"] >= 0
    assert f"sheet: {output}/sheet.png" in lines
    assert storage.read_bytes(result["sheet"]).startswith(b"\x89PNG")
    assert done.stderr == ""


@pytest.mark.usefixtures("storage")
def test_bad_input_is_status_2_and_one_line() -> None:
    done = python("jobs/inspect.py", "--set", "run.name=no-such-run")
    assert done.returncode == 2
    assert done.stderr.startswith("inspect: no corpus at s3://") and len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("job", ["inspect", "ingest", "evaluate"])
def test_jobs_start_beside_it(job: str) -> None:
    done = python(f"jobs/{job}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--set KEY=VALUE" in done.stdout


def test_help_shows_the_command() -> None:
    assert "python jobs/inspect.py --set run.name=first" in python("jobs/inspect.py", "--help").stdout


@pytest.mark.parametrize("folder", [str(ROOT / "jobs"), "jobs", "./jobs/../jobs"])
def test_the_standard_module_is_what_others_import(folder: str) -> None:
    done = python("-c", f"import sys; sys.path.insert(0, {folder!r}); {SAME}")
    assert done.stdout.strip() == STANDARD, done.stderr


def test_from_within_the_folder() -> None:
    assert python("-c", SAME, cwd=ROOT / "jobs").stdout.strip() == STANDARD  # sys.path[0] is ''


def test_a_script_beside_it_and_the_processes_that_it_starts(tmp_path: Path) -> None:
    """As any job: its folder comes first on sys.path, and a spawned process takes the path over."""
    shutil.copy(ROOT / "jobs" / "inspect.py", tmp_path)
    spawning = f"""
from multiprocessing import get_context
def probe():
    {SAME}
if __name__ == "__main__":
    probe()
    child = get_context("spawn").Process(target=probe)
    child.start(); child.join(); assert child.exitcode == 0
"""
    (tmp_path / "script.py").write_text(spawning)
    done = python(str(tmp_path / "script.py"))
    assert done.stdout.split() == [STANDARD, STANDARD], done.stderr


def test_in_ray_workers(tmp_path: Path, ray_cluster: None) -> None:
    """A driver's folder comes first on the path of its workers too."""
    import ray

    shutil.copy(ROOT / "jobs" / "inspect.py", tmp_path)
    driver = f"""
import ray
ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False, logging_level="ERROR")
@ray.remote
def probe():
    import sys
    del sys.modules["inspect"]  # the worker imported it before it got the path
    import inspect
    return sys.path, inspect.__file__, str(inspect.signature(len))
path, found, signature = ray.get(probe.remote())
assert {str(tmp_path)!r} in path, path
print(found, signature)
"""
    (tmp_path / "driver.py").write_text(driver)
    done = python(str(tmp_path / "driver.py"))
    assert done.stdout.strip() == f"{STANDARD} (obj, /)", done.stderr


def test_it_can_be_imported_under_its_own_name() -> None:
    done = python("-c", "import jobs.inspect, inspect; print(jobs.inspect.main.__doc__); print(inspect.__file__)")
    assert done.stdout.splitlines() == ["Inspect the corpus of the settings.", STANDARD], done.stderr
