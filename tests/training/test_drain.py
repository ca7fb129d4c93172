"""A node that Ray takes away under a run: a real second and third node on this machine. Minutes; ``make test-long``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.corpus import rows
from tests.training.drained import RECORDINGS

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]


def test_a_drained_node_is_left_with_a_checkpoint(stetholm_home: Path, language_model: Path) -> None:
    command = [sys.executable, "-m", "tests.training.drained", str(language_model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert f"sft: Ray is about to take away node {said['drained'][0][:8]}: going on from step " in done.stderr
    assert said["result"]["samples"] == 2 * len(rows(RECORDINGS))
    assert said["logged"] == list(range(1, said["result"]["steps"] + 1))
