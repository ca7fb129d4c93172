"""Hosts of one's own on this machine: namespaces with addresses, file systems and process ids of their own.

Each host is a process tree below this one: ``unshare`` gives it a network, a mount and a process namespace, and a
first process that only waits. A bridge in a namespace of its own joins their links. Nothing has to be taken down by
hand: who ends a host's first process, or dies after having made it, takes the host's processes, its network and its
link away with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

# Addresses for tests of networks among themselves (RFC 2544): nobody's network has them.
NETWORK = f"198.18.{os.getpid() % 250}"
MISSING = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
needs_hosts = pytest.mark.skipif(
    os.geteuid() != 0 or bool(MISSING),
    reason="hosts in network namespaces: only root can make them, with iproute2 and util-linux",
)

BOOT = """
set -e
mount -t tmpfs -o size=2g shm /dev/shm
mkdir -p /tmp/ray "$1/ray"
mount --bind "$1/ray" /tmp/ray
mount --bind "$1/hosts" /etc/hosts
mount --bind /dev/null /etc/resolv.conf
hostname "$2"
ip link set lo up
echo ready
while :; do sleep 3600 & wait $!; done
"""
"""Of a host's first process: memory and a folder for Ray of its own, names, and then it collects what has ended."""


@dataclass
class Host:
    """One host; its files lie in ``folder``, which is also its users' home."""

    name: str
    address: str
    folder: Path
    first: int
    """Process id of its first process, as seen from here."""
    switch: int
    """Process id of the bridge's namespace."""
    environ: dict[str, str] = field(default_factory=dict)

    def start(
        self,
        command: Sequence[str],
        log: str | None = None,
        environ: Mapping[str, str] | None = None,
        **options: object,
    ) -> subprocess.Popen[str]:
        """Start a command on it, in the project's folder; what it says goes to the file ``log`` of its folder."""
        variables = [f"{name}={value}" for name, value in {**self.environ, **(environ or {})}.items()]
        words = ["nsenter", "-t", str(self.first), "-n", "-p", "-m", "-u", "-i", "--"]
        words += ["env", "-i", "-C", str(ROOT), *variables, *command]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if log is not None:
            file = (self.folder / log).open("ab")
            output = {"stdout": file, "stderr": file}
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, text=True, preexec_fn=_die_with_parent, **{**output, **options}
        )  # fmt: skip

    def run(self, command: Sequence[str], environ: Mapping[str, str] | None = None, timeout: float = 300) -> str:
        """What a command prints that must succeed. Into files, as what it leaves running keeps its output open."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            status = self.start(command, environ=environ, stdout=out, stderr=errors).wait(timeout)
            said = [file.read() for file in (out, errors) if file.seek(0) == 0]
        assert status == 0, f"{self.name}: {' '.join(command)}\n{said[0]}\n{said[1]}"
        return said[0]

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Its processes whose command line has ``word`` in it."""
        mine = _pid_namespace(self.first)
        return [each for each in psutil.process_iter() if _pid_namespace(each.pid) == mine and word in _command(each)]

    def kill_all(self) -> int:
        """Kill all that was started on it, by id, as a machine's reset would; how many processes."""
        boot = {self.first, *(each.pid for each in self.processes("sleep 3600"))}
        found = [each for each in self.processes() if each.pid not in boot]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=30)
        return len(found)

    def cut_off(self) -> None:
        """Take its link down: nobody is told, packets are lost."""
        _ip(self.switch, "link", "set", f"to-{self.name}", "down")

    def join(self) -> None:
        """Put its link up again."""
        _ip(self.switch, "link", "set", f"to-{self.name}", "up")


@contextmanager
def hosts(names: Sequence[str], folder: Path, others: Mapping[str, str] | None = None) -> Iterator[dict[str, Host]]:
    """Hosts of these names for the length of the block, which this process reaches at their addresses.

    This process has the address ``.1`` of their network; they reach nothing beyond it. ``others``: other names by
    which they know some hosts, ``{"redis.example.org": "store"}``.
    """
    addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=11)}
    known = "".join(f"{address} {name}\n" for name, address in addresses.items())
    known += "".join(f"{addresses[name]} {other}\n" for other, name in (others or {}).items())
    began: list[subprocess.Popen[str]] = []
    try:
        switch = _first(
            began, ["--net"], "ip link add bridge type bridge; ip link set bridge up; echo ready; read -r _"
        )
        _here(switch)
        yield {name: _host(began, switch, name, where, folder / name, known) for name, where in addresses.items()}
    finally:
        for process in began:
            process.kill()
        for process in began:
            process.wait()


def _host(began: list[subprocess.Popen[str]], switch: int, name: str, address: str, folder: Path, known: str) -> Host:
    (folder / "ray").mkdir(parents=True)
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
    kinds = ["--net", "--pid", "--mount", "--uts", "--ipc", "--mount-proc"]
    first = _first(began, kinds, BOOT, str(folder), name)
    _ip(switch, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(first))
    _ip(switch, "link", "set", f"to-{name}", "master", "bridge", "up")
    _ip(first, "address", "add", f"{address}/24", "dev", "eth0")
    _ip(first, "link", "set", "eth0", "up")
    search = f"{ROOT}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return Host(name, address, folder, first, switch, {"PATH": search, "HOME": str(folder), "LANG": "C.UTF-8"})


def _first(began: list[subprocess.Popen[str]], kinds: list[str], script: str, *arguments: str) -> int:
    """Start a first process in new namespaces; its id, once it says that it is ready."""
    words = ["unshare", *kinds, "--fork", "--kill-child=SIGKILL", "bash", "-c", script, "first", *arguments]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_die_with_parent
    )  # fmt: skip
    began.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", f"no host: {words}"
    return psutil.Process(process.pid).children()[0].pid


def _here(switch: int) -> None:
    """Join this process's own network to the bridge; the link ends with the bridge."""
    mine = f"stetho{os.getpid() % 10**6}"
    subprocess.run(
        ["ip", "link", "add", mine, "type", "veth", "peer", "name", "to-tests", "netns", str(switch)], check=True
    )
    _ip(switch, "link", "set", "to-tests", "master", "bridge", "up")
    subprocess.run(["ip", "address", "add", f"{NETWORK}.1/24", "dev", mine], check=True)
    subprocess.run(["ip", "link", "set", mine, "up"], check=True)


def _ip(namespace: int, *arguments: str) -> None:
    subprocess.run(["nsenter", "-t", str(namespace), "-n", "--", "ip", *arguments], check=True)


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, however that comes about (PR_SET_PDEATHSIG = 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _pid_namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
