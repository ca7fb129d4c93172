"""The embedded S3 server: private, shared, kept up while it is used, gone when it is not."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stetholm.settings import StorageSettings
from stetholm.storage import StorageError, embedded, open_storage
from stetholm.storage.embedded import answers, join_server, read_state


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """A home of this test's own; its server is told to end afterwards (by the pid that it wrote down)."""
    monkeypatch.setenv("STETHOLM_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    server = read_state(tmp_path / "home")
    if server is not None:
        os.kill(server.supervisor_pid, signal.SIGTERM)


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def user(code: str, **kwargs) -> subprocess.Popen:
    """Another process that uses the server of ``$STETHOLM_HOME``."""
    text = "from stetholm.storage.embedded import join_server\nimport sys\ns = join_server()\n" + code
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **kwargs
    )


SAY = "print(s.supervisor_pid, s.endpoint_url, flush=True); sys.stdin.read()"


def test_listens_on_localhost_with_private_state_and_hidden_keys(own_home):
    server = join_server()
    assert server.endpoint_url.startswith("http://127.0.0.1:") and answers(server.endpoint_url)
    assert stat.S_IMODE((own_home / "s3.json").stat().st_mode) == 0o600
    (rclone,) = children(server.supervisor_pid)
    for pid in (server.supervisor_pid, rclone):
        command = Path(f"/proc/{pid}/cmdline").read_text()
        assert server.secret_key not in command and server.access_key not in command
    assert server.secret_key not in repr(server)
    assert join_server() == server


def test_processes_that_start_at_once_share_one_server(own_home):
    users = [user(SAY) for _ in range(4)]
    said = {process.stdout.readline() for process in users}
    for process in users:
        process.communicate("", timeout=20)
    assert len(said) == 1


def test_outlives_the_process_that_started_it_while_another_uses_it(own_home):
    first = user(SAY, start_new_session=True)
    pid, url = first.stdout.readline().split()
    second = user(SAY)
    second.stdout.readline()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    time.sleep(1.0)
    assert alive(int(pid)) and answers(url)
    second.communicate("")


def short_lease(folder: Path) -> subprocess.Popen:
    """A user whose server, started by it, waits one second only for its next user."""
    code = (
        "import os, subprocess, sys, fcntl\nfrom pathlib import Path\nfrom stetholm.storage import embedded as e\n"
        "embedded_run = 'from stetholm.storage import embedded as e; e.LEASE_SECONDS = 1.0; e.supervise()'\n"
        "e.hold_lease(Path(sys.argv[1]))\nsubprocess.run([sys.executable, '-c', embedded_run])\n"
        "s = e.join_server(); print(s.supervisor_pid, s.endpoint_url, flush=True); sys.stdin.read()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def test_ends_with_rclone_when_nobody_uses_it(own_home):
    own_home.mkdir()
    process = short_lease(own_home)
    pid, url = process.stdout.readline().split()
    (rclone,) = children(int(pid))
    time.sleep(2.0)
    assert alive(int(pid)), "it must not end while it is used"
    process.communicate("")
    wait_until(lambda: not alive(int(pid)) and not alive(rclone))
    assert not answers(url) and not (own_home / "s3.json").exists()


def test_a_killed_supervisor_takes_rclone_along_and_is_replaced(own_home):
    server = join_server()
    (rclone,) = children(server.supervisor_pid)
    os.kill(server.supervisor_pid, signal.SIGKILL)
    wait_until(lambda: not alive(rclone))
    assert (own_home / "s3.json").exists(), "the stale state file of a killed server"
    again = join_server()
    assert again.supervisor_pid != server.supervisor_pid and answers(again.endpoint_url)


def test_a_killed_rclone_comes_back_with_its_data_and_keys(own_home):
    storage = open_storage(StorageSettings())
    storage.write_text(storage.join("x"), "kept")
    (rclone,) = children(read_state(own_home).supervisor_pid)
    os.kill(rclone, signal.SIGKILL)
    wait_until(lambda: not alive(rclone))
    wait_until(lambda: answers(storage.endpoint_url))
    assert storage.read_text(storage.join("x")) == "kept"


def test_data_outlive_the_server(own_home):
    storage = open_storage(StorageSettings())
    storage.write_text(storage.join("x"), "kept")
    pid = read_state(own_home).supervisor_pid
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not alive(pid))
    again = open_storage(StorageSettings())
    assert again.endpoint_url != storage.endpoint_url or again.secret_key != storage.secret_key
    assert again.read_text(again.join("x")) == "kept"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"endpoint_url": 1}', json.dumps({"other": 1})])
def test_a_damaged_state_file_counts_as_none(own_home, text):
    own_home.mkdir()
    (own_home / "s3.json").write_text(text)
    assert read_state(own_home) is None


def test_a_server_that_cannot_start_says_why(own_home, monkeypatch, tmp_path):
    own_home.mkdir()
    (own_home / "s3").write_text("a file where the data folder should be")
    with pytest.raises(StorageError, match=r"embedded S3 server does not start: .*s3") as caught:
        join_server()
    assert "\n" not in str(caught.value)


def test_finds_the_rclone_of_this_environment():
    assert Path(embedded.rclone_binary()).parent in (Path(sys.executable).parent, Path(sys.prefix) / "bin")
