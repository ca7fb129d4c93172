"""The frame of all jobs: arguments, RESULT line, exit status, one line for what went wrong, no secrets."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stetholm.errors import UserError
from stetholm.job import find_user_error, run_job
from stetholm.runs import hold_run
from stetholm.settings import Settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Away from the repository's cluster.yaml."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys, storage):
    """Run a job in this process; returns status, RESULT (or None) and stderr."""

    def go(main, *argv):
        with pytest.raises(SystemExit) as ended:
            run_job("ingest", main, argv)
        out, err = capsys.readouterr()
        last = out.splitlines()[-1] if out else ""
        return ended.value.code, json.loads(last.removeprefix("RESULT ")) if last.startswith("RESULT ") else None, err

    return go


def log_of(err):
    """What the log file holds that the line on stderr names."""
    return Path(err.rsplit("traceback: ", 1)[1].rstrip(")\n")).read_text()


def raising(error):
    def main(settings, storage):
        raise error

    return main


def test_result_is_the_last_line_with_job_output_and_seconds(run):
    status, result, err = run(lambda settings, storage: {"output": storage.join("x"), "pairs": 3})
    assert (status, err) == (0, "")
    assert result.pop("seconds") >= 0
    assert result == {"job": "ingest", "output": "s3://stetholm/x", "pairs": 3}


def test_result_is_strict_json_whatever_the_numbers(run):
    odd = {"a": np.float32(1.5), "b": float("nan"), "c": [np.int64(2), float("inf")], "d": {"e": (1, None)}}
    _, result, _ = run(lambda settings, storage: {"output": "s3://b/x", **odd})
    assert result.items() >= {"a": 1.5, "b": None, "c": [2, None], "d": {"e": [1, None]}}.items()


def test_settings_of_the_command_line_reach_the_job(run, tmp_path):
    (tmp_path / "my.yaml").write_text("metadata: {stetholm: {run: {name: filed, seed: 7}}}")
    _, result, _ = run(
        lambda settings, storage: {"output": None, "name": settings.run.name, "seed": settings.run.seed},
        *("--config", "my.yaml", "--set", "run.name=set", "--set", "train.max_steps=1"),
    )
    assert (result["name"], result["seed"]) == ("set", 7)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--set", "train.max_stepz=5"], "did you mean 'train.max_steps'"),
        (["--set", "nonsense"], "key=value"),
        (["--config", "none.yaml"], "none.yaml: no such settings file"),
        (["--sett", "a=b"], "unrecognized arguments"),
        (["--set"], "expected one argument"),
        (["--set", "storage.uri=s3://bucket", "--set", "storage.endpoint_url=http://127.0.0.1:9"], "nothing answers"),
    ],
)
def test_bad_settings_are_one_line_and_status_2(run, argv, part):
    status, result, err = run(lambda settings, storage: {"output": "not reached"}, *argv)
    assert (status, result) == (2, None)
    assert part in err and err.startswith("ingest: ") and err.count("\n") == 1


def test_bad_input_is_one_line_and_status_2(run):
    status, result, err = run(raising(UserError("line 3:\nno such recording")))
    assert (status, result, err) == (2, None, "ingest: line 3: no such recording\n")


def test_anything_else_is_status_1_with_the_traceback_in_a_log_file(run, stetholm_home):
    status, result, err = run(raising(ValueError("surprise")))
    assert (status, result) == (1, None)
    assert err.startswith("ingest: failed: ValueError: surprise (traceback: ") and err.count("\n") == 1
    text = log_of(err)
    assert "Traceback" in text and "surprise" in text and str(stetholm_home / "logs") in err


def test_an_interrupted_job_says_so(run):
    assert run(raising(KeyboardInterrupt()))[::2] == (1, "ingest: interrupted\n")


def test_a_job_that_is_told_to_stop_gives_its_run_back(run, storage):
    def main(settings, storage):
        assert len(storage.list(storage.join("runs/default/lease"))) == 1
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")

    line = "ingest: stopped by SIGTERM; the same line again goes on from what is done\n"
    assert run(main)[::2] == (1, line)
    assert storage.list(storage.join("runs/default/lease")) == []


def test_a_second_job_of_a_run_is_refused(run, storage):
    with hold_run(Settings(), storage, "sft"):
        status, result, err = run(lambda settings, storage: {"output": "not reached"})
        assert (status, result) == (2, None) and err.count("\n") == 1
        assert err.startswith("ingest: run 'default': process ") and "(sft, since " in err
        assert run(lambda settings, storage: {"output": None}, "--set", "run.name=other")[0] == 0
    assert run(lambda settings, storage: {"output": None})[0] == 0


LOSING = """
import time
from stetholm.job import run_job
from stetholm.storage import lease
lease.BEAT_SECONDS = lease._POLL_SECONDS = 0.05
def main(settings, storage):
    print("at work")
    storage.remove_dir(storage.join("runs/losing/lease"))
    time.sleep(100)
run_job("sft", main, ["--set", "run.name=losing"])
"""


@pytest.mark.usefixtures("storage")
def test_a_job_that_has_lost_its_run_ends_at_once():
    ended = subprocess.run([sys.executable, "-c", LOSING], capture_output=True, text=True, timeout=90)
    assert (ended.returncode, ended.stdout) == (2, "at work\n")
    assert ended.stderr.startswith("sft: run 'losing': this process lost its lease") and ended.stderr.count("\n") == 1


def test_secrets_are_hidden_in_messages_and_logs(run, storage, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-0123456789")
    text = f"{storage.secret_key} {storage.access_key} sk-0123456789"
    for error in (UserError(text), RuntimeError(text)):
        _, _, err = run(raising(error))
        assert "*** *** ***" in err
    log = log_of(err)
    assert storage.secret_key not in log and "sk-0123456789" not in log


def chained(cause=None, context=None):
    try:
        try:
            raise cause or context
        except Exception as inner:
            if cause:
                raise RuntimeError("outer") from inner
            raise RuntimeError("outer")  # noqa: B904 - the implicit chain is what is tested
    except RuntimeError as error:
        return error


def test_finds_the_user_error_behind_other_errors():
    wanted = UserError("mend me")
    assert find_user_error(wanted) is wanted
    assert find_user_error(chained(cause=wanted)) is wanted
    assert find_user_error(chained(context=wanted)) is wanted
    assert find_user_error(ExceptionGroup("several", [ValueError(), wanted])) is wanted
    assert find_user_error(ValueError("none")) is None


def test_a_user_error_that_was_dealt_with_does_not_count():
    try:
        try:
            raise UserError("dealt with")
        except UserError:
            raise ValueError("a bug") from None
    except ValueError as error:
        assert find_user_error(error) is None


def test_a_circle_of_causes_ends():
    one, two = ValueError(), ValueError()
    one.__cause__, two.__cause__ = two, one
    assert find_user_error(one) is None


def test_finds_the_user_error_in_training_failures():
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    wanted = UserError("mend me")
    wrapped = UserExceptionWithTraceback(wanted, traceback_str="…")
    assert find_user_error(WorkerGroupError("both failed", {0: ValueError(), 1: wanted})) is wanted
    assert find_user_error(WorkerGroupError("one failed", {1: wrapped})) is wanted
    assert find_user_error(ControllerError(chained(cause=wanted))) is wanted


def test_a_user_error_in_a_ray_task_is_one_line(run, ray_cluster):
    import ray

    @ray.remote(num_cpus=0)
    def task():
        raise UserError("from another process")

    def main(settings, storage):
        return ray.get(task.remote())

    assert run(main)[::2] == (2, "ingest: from another process\n")


def test_a_user_error_in_ray_data_is_one_line(run, ray_cluster):
    import ray.data

    def row(item):
        raise UserError("a bad row")

    def main(settings, storage):
        return {"output": ray.data.range(2).map(row).take_all()}

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    status, _, err = run(main)
    assert status == 2 and err.splitlines()[-1] == "ingest: a bad row"
