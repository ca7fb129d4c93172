"""The long-running processes that our own commands start: recorded, so that ``make stop`` ends these and no others.

A record is a file ``<home>/pids/<pid>.json`` with the process's start time, since the system uses process ids again.

    python -m stetholm.processes run <what> -- <command …>   # become <command>, recorded as <what>
    python -m stetholm.processes stop                        # end all that is recorded
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from stetholm.storage import home

START_TOLERANCE_S = 2.0
"""How far two readings of one process's start time may lie apart (the system clock can be set meanwhile)."""


@dataclass(frozen=True)
class Record:
    """One process that a command of ours started."""

    pid: int
    started: float
    """Start time of the process, seconds since the epoch."""
    what: str
    """Which command: ``demo``, ``serve``."""

    def process(self) -> psutil.Process | None:
        """The process, unless it has ended (another one with its id is not it)."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < START_TOLERANCE_S
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except psutil.NoSuchProcess:
            pass
        return None


def folder() -> Path:
    """Where the records lie."""
    return home() / "pids"


def record(what: str, pid: int | None = None) -> Record:
    """Record a process (this one by default) as started by the command ``what``."""
    pid = os.getpid() if pid is None else pid
    made = Record(pid, psutil.Process(pid).create_time(), what)
    folder().mkdir(parents=True, exist_ok=True)
    path = folder() / f"{pid}.json"
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(made.__dict__))
    part.replace(path)
    return made


def forget(pid: int | None = None) -> None:
    """Remove a process's record (this one's by default), if there is one."""
    (folder() / f"{os.getpid() if pid is None else pid}.json").unlink(missing_ok=True)


def records() -> list[Record]:
    """Records of the processes that still run; the others' are removed."""
    alive = []
    for path in sorted(folder().glob("*.json")):
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):  # ended or half written meanwhile
            found = Record(**json.loads(path.read_text()))
            if found.process() is not None:
                alive.append(found)
            else:
                path.unlink(missing_ok=True)
    return alive


def end(processes: Iterable[psutil.Process], grace_s: float = 15.0) -> None:
    """Ask the processes to end, and kill those that have not after ``grace_s`` seconds."""
    processes = list(processes)
    for ask in ("terminate", "kill"):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, ask)()
        _, processes = psutil.wait_procs(processes, timeout=grace_s)


def stop() -> list[Record]:
    """End every recorded process with its descendants; returns what was ended."""
    found = records()
    for entry in found:
        process = entry.process()
        if process is None:
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            children = process.children(recursive=True)
            end([process], grace_s=30.0)  # it ends its own children in order if it can
            end([child for child in children if child.is_running()])
        forget(entry.pid)
    return found


def main(arguments: list[str]) -> int:
    """``run`` or ``stop``; see the module's docstring."""
    if arguments[:1] == ["stop"] and len(arguments) == 1:
        ended = stop()
        print("\n".join(f"ended {entry.what} (process {entry.pid})" for entry in ended) or "nothing of ours is running")
        return 0
    if arguments[:1] == ["run"] and arguments[2:3] == ["--"] and len(arguments) > 3:
        record(arguments[1])  # the command takes this process's place: same id, same start time
        os.execvp(arguments[3], arguments[3:])
    print("usage: python -m stetholm.processes run <what> -- <command …> | stop", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
