"""The demo from end to end, small: every job, the endpoint, the questions, and nothing left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "corpus.synthetic.patients=16",
    "train.max_steps=2",
    "train.batch_size=2",
    "prefer.pairs=4",
    "prefer.candidates=2",
    "prefer.temperatures=[0.7, 1.3]",
    "prefer.max_new_tokens=16",
    "evaluate.max_examples=8",
    "evaluate.max_new_tokens=16",
)


def demo(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo with a home of its own."""
    environ = {**os.environ, "STETHOLM_HOME": str(home), "COLUMNS": "160"}
    command = [sys.executable, "-m", "stetholm.demo", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def ours(home: Path) -> list[psutil.Process]:
    """Processes that still use this home."""
    return [
        process for process in psutil.process_iter(["cmdline"]) if str(home) in " ".join(process.info["cmdline"] or [])
    ]


@pytest.mark.long
def test_the_whole_path_and_again_under_the_same_name(tmp_path):
    first = demo(tmp_path, "--run", "small", *settings(*SMALL))
    assert first.returncode == 0, first.stdout + first.stderr
    for said in ("dashboard http://127.0.0.1", "ingest", "BERTScore", "endpoint", "answer", "Nothing is left running."):
        assert said in first.stdout
    assert first.stdout.count("\n  question  ") == 3
    assert ours(tmp_path) == []
    assert not list((tmp_path / "pids").glob("*.json"))
    run = tmp_path / "s3" / "stetholm" / "runs" / "small"
    done = {job: json.loads((run / job / "result.json").read_text()) for job in ("align", "sft", "dpo")}
    again = demo(tmp_path, "--run", "small", *settings(*SMALL))
    assert again.returncode == 0, again.stdout + again.stderr
    assert {job: json.loads((run / job / "result.json").read_text()) for job in done} == done


@pytest.mark.long
def test_a_failing_job_is_one_line_with_its_log_and_how_to_continue(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    failed = demo(tmp_path / "home", "--run", "bad", "--jsonl", str(tmp_path / "pairs.jsonl"), "--audio", str(tmp_path))
    assert failed.returncode == 2
    lines = failed.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("demo: ingest failed: ")
    assert Path(lines[1].rsplit(" ", 1)[1]).exists()
    assert "make demo RUN=bad JSONL=" in lines[2]
    assert ours(tmp_path) == []
