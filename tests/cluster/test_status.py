"""``make status``: what runs where."""

import io
import shlex
import socket

import pytest
from rich.console import Console

from stetholm import processes
from stetholm.cluster.__main__ import main
from stetholm.cluster.status import Sheet, look, show
from stetholm.demo.head import ray_head
from stetholm.demo.submit import run_job
from stetholm.errors import UserError
from tests.conftest import ROOT


def shown(sheets):
    out = io.StringIO()
    show(sheets, Console(file=out, width=200))
    return out.getvalue()


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Nothing of ours is recorded, and nothing of anybody's is looked for on this machine."""
    monkeypatch.setenv("STETHOLM_HOME", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        monkeypatch.setattr("stetholm.cluster.status.DEFAULT_ADDRESS", f"http://127.0.0.1:{taken.getsockname()[1]}")
        yield


def test_nothing_runs(alone):
    assert shown(look()) == "nothing runs\n"


def test_our_processes_are_listed(alone):
    made = processes.record("serve")
    (sheet,) = look()
    assert sheet.rows[0][:2] == ("serve", str(made.pid))
    assert "GiB" in shown([sheet])


def test_an_address_at_which_nothing_answers_is_one_line(alone, capsys):
    with pytest.raises(UserError, match="no Ray dashboard answers"):
        look("http://127.0.0.1:1")
    assert main(["status", "--address", "http://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_table_shows_all_cells():
    text = shown([Sheet("Jobs", ("job", "status"), [("sft-1", "RUNNING")])])
    assert "Jobs" in text and "sft-1" in text and "RUNNING" in text


@pytest.mark.long
def test_a_running_cluster(alone, tmp_path):
    """Our own head is found by itself, with its token; its node and its job are shown; another token is refused."""
    with ray_head(tmp_path) as head:
        entrypoint = shlex.join(["python", "-c", "print('RESULT {}')"])
        run_job(head.client(), "probe", entrypoint, ROOT, tmp_path / "job.log", lambda step: None)
        text = shown(look())
        assert "demo's Ray head" in text
        assert f"Ray nodes at {head.dashboard}" in text and "ALIVE" in text and "head" in text
        assert "probe-" in text and "SUCCEEDED" in text
        with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH"):
            look(head.dashboard)
