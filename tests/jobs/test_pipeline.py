"""The pipeline job: order, arguments, results, and what a failing stage does. Its stages are stand-ins here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stetholm.runs import CHECKPOINT_JOBS

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("ingest", "align", "sft", "prefer", "dpo", "evaluate")
STAND_IN = """
import json, pathlib, sys
name = pathlib.Path(__file__).stem
with open(pathlib.Path(__file__).with_name("ran.jsonl"), "a") as ran:
    ran.write(json.dumps([name, sys.argv[1:]]) + "\\n")
print("log of", name)
print("RESULT " + json.dumps({"job": name, "output": f"s3://b/{name}", "seconds": 0.1}))
"""


@pytest.fixture
def jobs(tmp_path):
    """A folder with the pipeline and stand-ins for its stages."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    shutil.copy(ROOT / "jobs" / "pipeline.py", folder)
    for stage in STAGES:
        (folder / f"{stage}.py").write_text(STAND_IN)
    return folder


def pipeline(jobs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "STETHOLM_HOME": str(jobs.parent / "home")}
    command = [sys.executable, str(jobs / "pipeline.py"), *arguments]
    return subprocess.run(command, cwd=jobs.parent, env=environ, capture_output=True, text=True)


def ran(jobs: Path) -> list[tuple[str, list[str]]]:
    return [tuple(json.loads(line)) for line in (jobs / "ran.jsonl").read_text().splitlines()]


def test_all_stages_in_order_with_the_same_settings(jobs):
    done = pipeline(jobs, "--set", "run.name=first")
    assert done.returncode == 0, done.stderr
    assert ran(jobs) == [(stage, ["--set", "run.name=first"]) for stage in STAGES]
    *logs, last = done.stdout.splitlines()
    assert logs == [f"log of {stage}" for stage in STAGES]
    result = json.loads(last.removeprefix("RESULT "))
    assert result["job"] == "pipeline"
    assert result["output"].endswith("/runs/first")
    assert [held["output"] for held in result["stages"].values()] == [f"s3://b/{stage}" for stage in STAGES]


@pytest.mark.parametrize(("status", "passed_on"), [(2, 2), (1, 1), (7, 1)])
def test_a_failing_stage_ends_it_with_its_status(jobs, status, passed_on):
    (jobs / "sft.py").write_text(f"import sys; print('sft: no corpus', file=sys.stderr); sys.exit({status})")
    failed = pipeline(jobs)
    assert failed.returncode == passed_on
    assert "sft: no corpus" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("pipeline: ")
    assert [stage for stage, _ in ran(jobs)] == ["ingest", "align"]
    assert "RESULT" not in failed.stdout


def test_its_stages_are_jobs_and_train_in_the_order_of_checkpoints():
    assert all((ROOT / "jobs" / f"{stage}.py").exists() for stage in STAGES)
    assert [stage for stage in STAGES if stage in CHECKPOINT_JOBS] == [job for job in CHECKPOINT_JOBS if job in STAGES]
