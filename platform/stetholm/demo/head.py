"""A Ray head of our own: started, waited for, and ended with everything below it."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from stetholm import processes
from stetholm.cluster.timeouts import STOP_WAIT, stop_wait_s
from stetholm.errors import UserError
from stetholm.settings import TrainSettings

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

RAY_WORKER_PORTS = range(10002, 20000)
"""Where Ray's processes may pick ports by themselves; our fixed ones stay outside."""
START_TIMEOUT_S = 120.0
OBJECT_STORE_BYTES = 2**30
SOCKET_PATH_LIMIT = 40
"""Longest base folder under which Ray's unix socket paths stay below the system's limit of about 107 characters."""


@dataclass(frozen=True)
class Head:
    """A running Ray head."""

    dashboard: str
    """URL of the dashboard, which is also the job server."""
    folder: Path
    """Ray's temporary folder (sessions, logs, token)."""
    process: subprocess.Popen[bytes]

    @property
    def token_file(self) -> Path:
        """File with the token that the dashboard and every client ask for."""
        return self.folder / "token"

    def client(self) -> JobSubmissionClient:
        """A client of the job server."""
        from ray.job_submission import JobSubmissionClient

        for handler in logging.getLogger("ray").handlers:  # its loggers set levels of their own
            handler.setLevel(logging.ERROR)
        # In a header, because Ray reads a token of the environment once in a process's life.
        return JobSubmissionClient(self.dashboard, headers={"Authorization": f"Bearer {self.token_file.read_text()}"})


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on now, all different, outside Ray's worker ports."""
    sockets: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            opened = socket.socket()
            sockets.append(opened)
            opened.bind(("127.0.0.1", 0))
            if (port := opened.getsockname()[1]) not in RAY_WORKER_PORTS:
                ports.append(port)
    finally:
        for opened in sockets:
            opened.close()
    return ports


def temporary_folder() -> Path:
    """A new folder with a path short enough for Ray's unix sockets."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="stetholm-", dir=base if len(base) <= SOCKET_PATH_LIMIT else "/tmp"))


def make_token(path: Path) -> None:
    """Write a new token for Ray's authentication, readable by its owner alone."""
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))


def start_command(ports: list[int], folder: Path) -> list[str]:
    """``ray start`` for a head whose every fixed port is given."""
    names = (
        "--port",
        "--dashboard-port",
        "--dashboard-agent-listen-port",
        "--dashboard-agent-grpc-port",
        "--runtime-env-agent-port",
        "--metrics-export-port",
        "--ray-client-server-port",
        "--node-manager-port",
        "--object-manager-port",
    )
    fixed = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    return [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        "--disable-usage-stats",
        f"--num-cpus={max(4, os.cpu_count() or 1)}",  # logical: small tasks and waiting actors hold shares too
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={folder / 'ray'}",
        *fixed,
    ]


def environment(token: Path) -> dict[str, str]:
    """What the head passes on to all jobs: this environment's ``python`` first, output unbuffered, the token."""
    other = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
    passed = {key: value for key, value in os.environ.items() if key not in other}
    return passed | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{passed.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        STOP_WAIT: str(stop_wait_s(TrainSettings().grace_seconds)),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing is left to drain: the endpoint is down by then
    }


def wait_until_ready(head: Head, log: Path) -> None:
    """Return once the job server answers.

    Raises:
        UserError: the head ended, or did not answer in time; the message names its log.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if head.process.poll() is not None:
            raise UserError(f"the Ray head ended with status {head.process.returncode} while starting: see {log}")
        try:
            head.client().list_jobs()
        except (ConnectionError, RuntimeError):  # not listening yet, or its agent is not up yet
            time.sleep(0.5)
        else:
            return
    raise UserError(f"the Ray head did not answer within {START_TIMEOUT_S:.0f} s: see {log}")


Options = Callable[[Path, list[int]], tuple[list[str], dict[str, str]]]
"""Of a head's temporary folder and its ports: further options of its command, and environment variables."""


@contextmanager
def ray_head(logs: Path, options: Options = lambda folder, ports: ([], {})) -> Iterator[Head]:
    """Run a Ray head for the duration of the block.

    Ray's own logs are copied to ``logs/ray`` if the block is left by an error. The head gets a process group of its
    own, so that Ctrl-C reaches this process alone, which then ends things in order.
    """
    folder = temporary_folder()
    make_token(folder / "token")
    ports = free_ports(9)
    more, variables = options(folder, ports)
    log = logs / "ray-head.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*start_command(ports, folder), *more],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment(folder / "token") | variables,
            start_new_session=True,
        )
    processes.record("demo's Ray head", process.pid)
    head = Head(f"http://127.0.0.1:{ports[1]}", folder, process)
    try:
        wait_until_ready(head, log)
        yield head
    except BaseException:
        keep_logs(folder, logs)
        raise
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def stop(process: subprocess.Popen[bytes], grace_s: float = 20.0) -> None:
    """End the head and all its processes: the head first, which ends most of the others in order."""
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        _, left = psutil.wait_procs(below, timeout=5.0)
        processes.end(left, grace_s=5.0)  # Ray's agents notice late that their raylet has gone
    if process.poll() is None:
        process.kill()
        process.wait()
    processes.forget(process.pid)


def keep_logs(folder: Path, logs: Path) -> None:
    """Copy the logs of Ray's session beside the demo's own."""
    session = folder / "ray" / "session_latest" / "logs"
    if session.is_dir():
        shutil.copytree(session, logs / "ray", ignore_dangling_symlinks=True, dirs_exist_ok=True)
