"""``python jobs/ingest.py``: exit status and the RESULT line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from tests.corpus.sounds import pair, write_source

ROOT = Path(__file__).parents[2]


def run(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """The job in a process of its own, on the tests' Ray and storage."""
    command = [sys.executable, "jobs/ingest.py", "--set", f"run.name={folder.name}"]
    files = (f"corpus.jsonl={folder}/pairs.jsonl", f"corpus.audio={folder}/audio")
    for setting in (*files, *settings):
        command += ["--set", setting]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.usefixtures("ray_cluster", "storage")
def test_done_then_done_already(tmp_path: Path) -> None:
    folder = tmp_path / "job-ingest"
    write_source(folder, [*(pair("0.wav", number) for number in range(3)), pair("none.wav")])
    first = run(folder, "corpus.max_reject_fraction=0.5")
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout.splitlines()[-1].removeprefix("RESULT "))
    expected = {"job": "ingest", "recordings": 1, "pairs": 3, "rejected": 1}
    assert {key: result[key] for key in expected} == expected
    assert result["output"].startswith("s3://") and result["seconds"] >= 0
    again = run(folder, "corpus.max_reject_fraction=0.5")
    assert again.returncode == 0
    assert json.loads(again.stdout.splitlines()[-1].removeprefix("RESULT "))["pairs"] == 3


@pytest.mark.usefixtures("ray_cluster", "storage")
def test_bad_input_is_status_2_and_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "job-ingest-bad"
    write_source(folder, [pair("0.wav"), b"{"])
    done = run(folder)
    assert done.returncode == 2
    assert "1 of 2 pairs are rejected" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "RESULT" not in done.stdout
