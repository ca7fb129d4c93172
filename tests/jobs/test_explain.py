"""``python jobs/explain.py``: exit status, the RESULT line and progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stetholm.storage import Storage
from tests.evaluation.corpus import make_checkpoint

ROOT = Path(__file__).parents[2]


def run(*settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/explain.py", *(part for pair in settings for part in ("--set", pair))]
    return subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300, check=False
    )


def test_done_and_its_result(storage: Storage, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(storage, storage.join("test-explain-job/checkpoint"), tmp_path / "tiny")
    soundfile.write(tmp_path / "heart.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 8000), 4000)
    done = run(
        "run.name=job-explain", f"model.init_from={checkpoint}", f"explain.audio={tmp_path / 'heart.wav'}",
        "explain.question=Is this heart sound normal?", "explain.max_new_tokens=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    result = json.loads(last.removeprefix("RESULT "))
    output = storage.join("runs/job-explain/explain")
    assert (result["job"], result["output"], result["examples"]) == ("explain", output, 1)
    assert f"numbers: {output}/explain.json" in lines and f"  {output}/occlusion-audio.png" in lines
    assert "explain  1/1 examples" in done.stderr


@pytest.mark.usefixtures("storage")
def test_bad_input_is_status_2_and_one_line() -> None:
    done = run("run.name=no-such-run")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("explain: run 'no-such-run' has no finished checkpoint")
    assert len(done.stderr.splitlines()) == 1
