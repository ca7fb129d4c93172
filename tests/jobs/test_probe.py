"""``python jobs/probe.py``: exit status and its one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stetholm.storage import Storage

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_bad_input_ends_with_status_2_and_one_line(storage: Storage) -> None:
    command = [sys.executable, "jobs/probe.py", "--set", "run.name=job-probe", "--set", "probe.encoders=[hum]",
               "--set", "probe.zero_shot=false"]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("probe: probe.encoders: unknown encoder 'hum'")
