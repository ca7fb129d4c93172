"""Jobs under ``ray job submit``: what is uploaded, statuses, stopping, killing, going on. Minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.submit import package
from stetholm.corpus.shards import write_corpus
from stetholm.demo.head import Head, ray_head
from stetholm.demo.submit import command, submit
from stetholm.settings import load_settings
from stetholm.storage import Storage
from stetholm.training.checkpoints import Checkpoints
from stetholm.training.history import FILE, from_lines
from tests.conftest import ROOT
from tests.evaluation.corpus import rows
from tests.serving.tiny import save_tiny_llama

RUN = "submitted"
EPOCHS = 10
UPLOADED_MIB = 2
WHERE = """
import json, ray, stetholm
ray.init()
worker = ray.get(ray.remote(num_cpus=0)(lambda: __import__("stetholm").__file__).remote())
print("RESULT " + json.dumps([stetholm.__file__, worker]))
"""


def test_the_working_directory_is_small_and_has_what_jobs_need(tmp_path: Path) -> None:
    names, size = package(ROOT, tmp_path)
    tops = {name.partition("/")[0] for name in names}
    assert {"jobs/pipeline.py", "cluster.yaml", "serve/app.py", "platform/stetholm/job.py"} <= names
    assert not tops & {"docs", "tests", "benchmarks", "scripts", ".git", ".venv", "build", "deploy"}
    assert size < UPLOADED_MIB * 2**20


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, stetholm_home: Path) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("head")) as started:
        yield started


class Job:
    """A submitted job."""

    def __init__(self, head: Head, entrypoint: str, environment: dict[str, str]) -> None:
        self.client = head.client()
        self.name = submit(self.client, RUN, entrypoint, ROOT, environment)

    def ended(self, seconds: float = 400) -> Any:
        """What Ray says of it when it has ended."""
        until(lambda: self.client.get_job_status(self.name).is_terminal(), seconds, lambda: self.lines()[-5:])
        return self.client.get_job_info(self.name)

    def lines(self) -> list[str]:
        return str(self.client.get_job_logs(self.name)).splitlines()


def until(found: Callable[[], Any], seconds: float = 400, told: Callable[[], Any] = str) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module")
def train(head: Head, storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Job]:
    """Submits the pipeline with a training of many short steps."""
    corpus = storage.join("test-submit/corpus")
    write_corpus(storage, corpus, {"train": rows(range(24))}, inputs={}, row_group_rows=4)
    settings = [
        *(f"run.name={RUN}", f"corpus.uri={corpus}", "pipeline.jobs=[sft]"),
        f"model.language_model={save_tiny_llama(tmp_path_factory.mktemp('tiny-llama'))}",
        *("train.workers=1", "train.tokens_per_batch=512", f"train.epochs={EPOCHS}", "train.checkpoint_every=4"),
        *("train.log_every=1", "train.precision=fp32", "train.trackers=[]"),
    ]
    load_settings(None, settings, {})
    return lambda: Job(head, command("jobs/pipeline.py", settings), {})


def sft_process(head: Head) -> psutil.Process:
    below = psutil.Process(head.process.pid).children(recursive=True)
    return next(one for one in below if any(word.endswith("jobs/sft.py") for word in one.cmdline()))


@pytest.mark.long
def test_a_run_is_refused_stopped_killed_and_ends_as_if_nothing_had_been(
    head: Head, storage: Storage, train: Callable[[], Job]
) -> None:
    checkpoints = Checkpoints(storage, storage.join("runs", RUN, "sft"), keep=2)
    first = train()
    until(checkpoints.latest)

    second = train().ended()
    assert (second.status, second.driver_exit_code) == ("FAILED", 2)
    assert f"pipeline: run '{RUN}': process " in second.message and "is at it; wait until it is done" in second.message

    first.client.stop_job(first.name)
    assert first.ended().status == "STOPPED"
    left = checkpoints.latest()
    assert left is not None
    told = [line for line in first.lines() if line.startswith(("sft: ", "pipeline: "))]
    assert told[-2].startswith(f"sft: stopped by SIGTERM: the last checkpoint is of step {left.step} ")
    assert told[-1] == "pipeline: stopped by SIGTERM at sft; the same line again goes on"
    assert storage.list(storage.join("runs", RUN, "lease")) == []

    third = train()
    until(lambda: checkpoints.latest().step > left.step)
    sft_process(head).kill()
    killed = third.ended()
    assert (killed.status, killed.driver_exit_code) == ("FAILED", 1)
    assert "pipeline: failed: RuntimeError: stopped: sft ended with status -9" in killed.message

    last = train()
    assert last.ended().status == "SUCCEEDED", last.lines()[-5:]
    result = json.loads(last.lines()[-1].removeprefix("RESULT "))["stages"]["sft"]
    steps = [record["step"] for record in from_lines(storage.read_text(f"{result['output']}/{FILE}"))]
    assert steps == list(range(1, result["steps"] + 1))
    assert result["samples"] == EPOCHS * len(rows(range(24)))

    status = subprocess.run(
        [str(Path(sys.executable).with_name("ray")), "job", "status", first.name],
        env={
            **os.environ,
            "RAY_API_SERVER_ADDRESS": head.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(head.token_file),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"Job '{first.name}' was stopped" in status.stdout + status.stderr


@pytest.mark.long
def test_the_uploaded_package_comes_first_where_it_is_asked_for(head: Head, tmp_path: Path) -> None:
    script = tmp_path / "where.py"
    script.write_text(WHERE)
    job = Job(head, f"python {script}", {"PYTHONPATH": "platform"})
    assert job.ended().status == "SUCCEEDED", job.lines()
    found = json.loads(job.lines()[-1].removeprefix("RESULT "))
    assert len(found) == 2 and all("working_dir_files" in name for name in found)
