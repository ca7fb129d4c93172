"""The pipeline job: order, arguments, results, the gate, and what a failing job does. Its jobs are stand-ins here."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stetholm.errors import Stopped, UserError
from stetholm.pipeline import ANALYSES, Pipeline, jobs_of
from stetholm.runs import CHECKPOINT_JOBS, hold_run
from stetholm.settings import load_settings
from stetholm.settings.pipeline import PIPELINE

ROOT = Path(__file__).resolve().parents[2]
USUAL = ["ingest", "inspect", "align", "sft", "prefer", "dpo", "evaluate", "probe", "explain"]
STAND_IN = """
import json, os, pathlib, sys
name = pathlib.Path(__file__).stem
with open(pathlib.Path(__file__).with_name("ran.jsonl"), "a") as ran:
    ran.write(json.dumps([name, sys.argv[1:], os.environ["STETHOLM_RUN_CLAIM"]]) + "\\n")
print("log of", name)
print("RESULT " + json.dumps({"job": name, "output": f"s3://b/{name}", "seconds": 0.1, **MORE}))
"""


def stand_in(folder: Path, job: str, **more: object) -> None:
    (folder / f"{job}.py").write_text(STAND_IN.replace("MORE", repr(more)))


def failing(folder: Path, job: str, status: int) -> None:
    (folder / f"{job}.py").write_text(f"import sys; print('{job}: no corpus', file=sys.stderr); sys.exit({status})")


@pytest.fixture
def jobs(tmp_path):
    """A folder with the pipeline and stand-ins for its jobs."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    shutil.copy(ROOT / "jobs" / "pipeline.py", folder)
    for job in PIPELINE:
        stand_in(folder, job)
    return folder


@pytest.fixture
def run(jobs, storage):
    """The pipeline in this process, with these settings."""

    def go(*overrides: str) -> dict:
        settings = load_settings(ROOT / "cluster.yaml", overrides, environ={})
        arguments = [word for override in overrides for word in ("--set", override)]
        with hold_run(settings, storage, "pipeline") as held:
            return Pipeline(settings, storage, arguments, jobs, held).run()

    return go


def start(jobs: Path, name: str) -> subprocess.Popen[str]:
    """The script, as a process of its own; without its folder on the path, where the stand-in ``inspect`` lies."""
    command = [sys.executable, "-P", str(jobs / "pipeline.py"), "--set", f"run.name={name}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=jobs.parent, env=dict(os.environ), text=True, **pipes)


def ran(jobs: Path) -> list[str]:
    return [json.loads(line)[0] for line in (jobs / "ran.jsonl").read_text().splitlines()]


def test_all_jobs_in_order_with_the_same_settings_on_one_lease(jobs, storage):
    out, err = (process := start(jobs, "pipe-all")).communicate(timeout=120)
    assert process.returncode == 0, err
    result = json.loads(out.splitlines()[-1].removeprefix("RESULT "))
    lines = [json.loads(line) for line in (jobs / "ran.jsonl").read_text().splitlines()]
    assert [(job, arguments) for job, arguments, _ in lines] == [(job, ["--set", "run.name=pipe-all"]) for job in USUAL]
    (claim,) = {claim for *_, claim in lines}
    assert claim.startswith(storage.join("runs/pipe-all/lease/")) and not storage.exists(claim)
    assert out.splitlines()[:-1] == [f"pipeline: {', '.join(USUAL)}", *(f"log of {job}" for job in USUAL)]
    assert result["job"] == "pipeline" and result["output"] == storage.join("runs/pipe-all")
    assert [held["output"] for held in result["stages"].values()] == [f"s3://b/{job}" for job in USUAL]
    assert result["left_out"] == []


@pytest.mark.parametrize(
    ("overrides", "more"),
    [
        (["synthesize.writer=template"], {"synthesize"}),
        (["synthesize.writer=template", "corpus.jsonl=pairs.jsonl"], set()),
        (["import_weights.weights=cola.ckpt", "export.kind=adapter"], {"import_weights", "export"}),
    ],
)
def test_some_jobs_run_where_their_settings_ask_for_them(overrides, more):
    jobs = jobs_of(load_settings(ROOT / "cluster.yaml", overrides, environ={}))
    assert set(jobs) == {*USUAL, *more} and jobs == sorted(jobs, key=PIPELINE.index)


def test_a_choice_of_jobs_runs_in_the_pipelines_order():
    chosen = ["pipeline.jobs=[evaluate, sft, sft]"]
    assert jobs_of(load_settings(ROOT / "cluster.yaml", chosen, environ={})) == ["sft", "evaluate"]


def test_ingest_reads_the_pairs_that_were_synthesized(jobs, run):
    stand_in(jobs, "synthesize", output="s3://b/pairs.jsonl", audio="s3://b/recordings")
    run("run.name=pipe-pairs", "pipeline.jobs=[synthesize, ingest]")
    _, (_, arguments, _) = (json.loads(line) for line in (jobs / "ran.jsonl").read_text().splitlines())
    found = load_settings(ROOT / "cluster.yaml", arguments[1::2], environ={}).corpus
    assert (found.source, found.jsonl, found.audio) == ("stethobench", "s3://b/pairs.jsonl", "s3://b/recordings")


@pytest.mark.parametrize(("status", "error"), [(2, UserError), (7, RuntimeError)])
def test_a_failing_job_ends_it(jobs, run, storage, capfd, status, error):
    failing(jobs, "sft", status)
    with pytest.raises(error, match=r"stopped.* sft"):
        run("run.name=pipe-failing")
    assert ran(jobs) == ["ingest", "inspect", "align"]
    assert "sft: no corpus" in capfd.readouterr().err
    assert storage.list(storage.join("runs/pipe-failing")) == []


def test_an_analysis_that_the_corpus_does_not_allow_is_left_out_unless_it_was_asked_for(jobs, run, capfd):
    failing(jobs, "probe", 2)
    result = run("run.name=pipe-analysis")
    assert "pipeline: probe is left out: its message stands above" in capfd.readouterr().err
    assert result["left_out"] == ["probe"] and list(result["stages"]) == [job for job in USUAL if job != "probe"]
    with pytest.raises(UserError, match="stopped at probe, whose message stands above"):
        run("run.name=pipe-analysis", "pipeline.jobs=[probe, explain]")


def test_it_stops_at_the_gate(jobs, run):
    stand_in(jobs, "evaluate", gate={"passed": False, "failed": ["overall", "margin"], "output": "s3://b/gate.json"})
    with pytest.raises(Stopped, match=r"^stopped at the gate .* not passed overall, margin \(s3://b/gate.json\)$"):
        run("run.name=pipe-gate", "export.kind=merged")
    assert ran(jobs)[-1] == "evaluate"


def test_nothing_is_exported_that_an_earlier_gate_refused(jobs, run, storage):
    checkpoint = storage.join("runs/pipe-export/sft/checkpoint")
    storage.write_json(f"{checkpoint}/config.json", {})
    storage.write_bytes(f"{checkpoint}/model.safetensors", b"weights")
    storage.write_json(storage.join("runs/pipe-export/sft/result.json"), {"output": checkpoint})
    check = {"rule": "minimum", "name": "overall", "passed": False}
    sha = hashlib.sha256(b"weights").hexdigest()
    gate = {"version": 1, "passed": False, "weights_sha256": sha, "date": "today", "checks": [check], "split": "test"}
    storage.write_json(f"{checkpoint}/gate.json", gate)
    with pytest.raises(UserError, match=r"has not passed its gate \(minimum overall"):
        run("run.name=pipe-export", "pipeline.jobs=[export]")
    assert not (jobs / "ran.jsonl").exists()


def test_a_second_one_is_refused_and_the_first_is_told_to_stop(jobs, storage):
    (jobs / "sft.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('sft left', flush=True), sys.exit(1)))\n"
        "print('training', flush=True); time.sleep(120)"
    )
    first = start(jobs, "pipe-two")
    assert "training\n" in iter(first.stdout.readline, "")
    second = start(jobs, "pipe-two")
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (2, "")
    assert re.fullmatch(
        r"pipeline: run 'pipe-two': process \d+ on \S+ \(pipeline, since \S+\) is at it; wait .+\n", err
    )
    first.terminate()
    out, err = first.communicate(timeout=60)
    assert (first.returncode, out) == (1, "sft left\n")
    assert err.splitlines()[-1] == "pipeline: stopped by SIGTERM at sft; the same line again goes on"
    assert storage.list(storage.join("runs/pipe-two")) == []


def test_its_jobs_are_there_and_train_in_the_order_of_checkpoints():
    assert all((ROOT / "jobs" / f"{job}.py").exists() for job in PIPELINE)
    assert [job for job in PIPELINE if job in CHECKPOINT_JOBS] == list(CHECKPOINT_JOBS)
    assert set(ANALYSES) < set(USUAL)
