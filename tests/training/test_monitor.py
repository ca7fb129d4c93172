"""What is seen of a real run, in one plain process; and how a run that goes wrong ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from stetholm.corpus.shards import write_corpus
from stetholm.errors import UserError
from stetholm.settings import Settings
from stetholm.storage import Storage
from stetholm.training.history import FILE, from_lines
from stetholm.training.job import StageJob
from stetholm.training.lineage import Lineage
from stetholm.training.monitor import shown, si
from tests.conftest import ROOT
from tests.evaluation.corpus import rows

pytestmark = pytest.mark.usefixtures("ray_cluster", "alone")

STEPS = 7


@pytest.fixture(scope="module")
def make_job(storage: Storage, language_model: Path):
    corpus = storage.join("test-monitor", "corpus")
    write_corpus(storage, corpus, {"train": rows(range(8))}, inputs={}, row_group_rows=4)

    def make(run: str, **train: Any) -> StageJob:
        values = {"batch_size": 2, "max_steps": STEPS, "log_every": 3, "checkpoint_every": 2, "precision": "fp32"}
        settings = Settings.model_validate(
            {
                "run": {"name": run},
                "model": {"language_model": str(language_model)},
                "train": {**values, "keep_checkpoints": 9, **train},
                "sft": {"encoder_learning_rate": None},
            }
        )
        return StageJob("sft", settings, storage, corpus, Lineage("sft", run, None, corpus, "sha", "code"))

    return make


def run(job: StageJob) -> list[int]:
    """Train; steps of the checkpoints that were written."""
    from stetholm.training.worker import run_stage

    run_stage(job, None, job.checkpoints().report)
    return [found.step for found in job.checkpoints().whole()]


@pytest.fixture(scope="module")
def done(make_job) -> StageJob:
    job = make_job("seen")
    assert run(job) == [2, 4, 6, 7]
    return job


def history(job: StageJob) -> list[dict[str, Any]]:
    latest = job.checkpoints().latest()
    assert latest is not None
    return from_lines(job.storage.read_text(f"{latest.uri}/{FILE}"))


def test_lines_are_due_at_the_first_and_last_step_and_at_checkpoints(done):
    assert [record["step"] for record in history(done)] == [1, 2, 3, 4, 6, 7]


def test_each_line_has_all_the_numbers(done):
    for record in history(done):
        assert record["loss"] > 0 and record["grad_norm"] > 0
        assert record["samples_per_s"] > 0 and record["tokens_per_s"] > record["samples_per_s"]
        assert 0 <= record["padding"] < 1 and 0 <= record["data_wait"] <= 1
        assert 0 < record["mfu"] < 1 and 0.05 < record["memory_gb"] < 64
        assert record["time"] <= time.time()
    assert history(done)[-1]["eta_s"] == 0 < history(done)[0]["eta_s"]
    rates = [record["learning_rate"] for record in history(done)]
    assert rates[0] == 0.0  # warming up: what the step used, not what the next will use
    assert max(rates) <= 1e-3 and rates[-1] < rates[2]


def test_the_picture_lies_beside_each_checkpoint(done):
    for found in done.checkpoints().whole():
        assert done.storage.read_bytes(f"{found.uri}/curves.png").startswith(b"\x89PNG")


def test_event_files_lie_beside_the_run(done):
    folder = done.storage.join("runs", "seen", "sft", "tensorboard", "train")
    (file,) = done.storage.list(folder)
    assert "tfevents" in file and b"tokens_per_s" in done.storage.read_bytes(file)


def test_the_same_numbers_stand_at_rays_metrics_endpoint(done):
    node = ray.nodes()[0]
    where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until = time.monotonic() + 90
    while time.monotonic() < until:
        lines = [line for line in httpx.get(where, timeout=30).text.splitlines() if 'run="seen"' in line]
        named = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if 'stage="sft"' in line}
        if named.get("ray_stetholm_train_step") == STEPS:
            break
        time.sleep(1)
    last = history(done)[-1]
    for name in ("loss", "learning_rate", "tokens_per_s", "data_wait", "padding", "memory_gb", "mfu"):
        assert named[f"ray_stetholm_train_{name}"] == pytest.approx(last[name], rel=1e-5), name


def test_a_run_without_numbers_ends_with_the_step_and_its_samples(make_job):
    job = make_job("nan", learning_rate=1e30, warmup_fraction=0.0, checkpoint_every=1, trackers=())
    with pytest.raises(UserError) as caught:
        run(job)
    text = str(caught.value)
    assert " is nan at step 2. The last good checkpoint is that of step 1: " in text
    ids = {row["sample_id"] for row in rows(range(8))}
    named = text.partition("Samples: ")[2].split(", ")
    assert len(named) == 2 and set(named) <= ids
    latest = job.checkpoints().latest()
    assert latest is not None and latest.step == 1


@pytest.mark.long
def test_it_goes_on_with_the_rate_that_is_set_then(make_job, tmp_path):
    """As the message advises; the curve goes on too."""
    from stetholm.training.worker import run_stage

    first = make_job("lowered", max_steps=4, warmup_fraction=0.0, trackers=())
    run(first)
    job = make_job("lowered", max_steps=8, warmup_fraction=0.0, learning_rate=1e-5, trackers=())
    latest = job.checkpoints().latest()
    assert latest is not None and latest.step == 4
    job.storage.download_dir(latest.uri, tmp_path)
    run_stage(job, tmp_path, job.checkpoints().report)
    rates = {record["step"]: record["learning_rate"] for record in history(job)}
    assert list(rates) == [1, 2, 3, 4, 6, 8]
    assert rates[1] == 1e-3 and rates[6] == pytest.approx(1e-5 * (8 - 5) / 8)


def test_the_weights_that_were_saved_before_are_numbers(make_job, tmp_path):
    job = make_job("nan")
    latest = job.checkpoints().latest()
    assert latest is not None
    job.storage.download_dir(latest.uri, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values() if weight.is_floating_point())


def test_a_run_that_diverges_ends(make_job):
    # A tiny model's loss cannot rise far: its frozen head is all but uniform.
    job = make_job("up", learning_rate=3.0, warmup_fraction=0.0, divergence=1e-3, divergence_steps=1, log_every=1)
    with pytest.raises(UserError, match="the loss has diverged"):
        run(job)


@pytest.mark.long
def test_the_job_ends_with_status_2_and_one_line(make_job, storage, language_model):
    job = make_job("job")
    values = {
        "run.name": "job",
        "corpus.uri": job.corpus,
        "model.language_model": language_model,
        "train.learning_rate": "1e30",
        "train.warmup_fraction": "0.0",
        "train.max_steps": 6,
        "train.checkpoint_every": 1,
        "train.max_failures": 3,
    }
    settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, str(ROOT / "jobs" / "sft.py"), *settings]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert ended.returncode == 2
    # Not that there is no traceback at all: Ray Train's cleaner of placement groups has one where two Rays run.
    assert "Error in training function" not in ended.stderr and ended.stderr.count("the loss is nan") == 1
    assert "sft: the loss is nan at step 2. The last good checkpoint is that of step 1" in ended.stderr.splitlines()[-1]
    assert [found.step for found in job.checkpoints().whole()] == [1]


NUMBERS = {
    "loss": 1.23456,
    "tokens_per_s": 2345.6,
    "data_wait": 0.012,
    "padding": 0.08,
    "memory_gb": 1.23,
    "mfu": 0.41,
    "eta_s": 3.0,
}


def test_the_line_is_short():
    line = shown(NUMBERS)
    assert line == {"loss": "1.235", "tok_per_s": "2.3k", "wait": "1%", "pad": "8%", "mem": "1.2G"}
    on_gpu = shown(NUMBERS | {"gpu_memory_gb": 61.5})
    assert on_gpu["mfu"] == "41%" and on_gpu["mem"] == "61.5G"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7.4, "7"), (999.4, "999"), (999.6, "1.0k"), (1234, "1.2k"), (34567, "35k"), (2.5e6, "2.5M")],
)
def test_sizes_are_short(value, text):
    assert si(value) == text


@given(st.floats(0, 1e9))
def test_and_stay_near_what_they_say(value):
    text = si(value)
    number = float(text.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(text[-1], 1)
    assert len(text) <= 5 and abs(number - value) <= max(0.5, 0.051 * value)
