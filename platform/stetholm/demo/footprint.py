"""What the demo holds on this machine: the memory of its processes, and which of them are left at the end."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

import psutil

from stetholm import processes


class Footprint:
    """Follows the descendants that this process starts from now on, while it is open.

    What ran below this process before is not its business. A descendant stays known when its parent ends, so that one
    left behind is found, by process id and start time.
    """

    def __init__(self, every_s: float = 3.0) -> None:
        """Look at the processes every ``every_s`` seconds."""
        self.peaks: dict[str, int] = {}
        """Largest sum seen by step, in bytes: proportional set sizes where the system tells them (shared pages once),
        else resident."""
        self.step = ""
        """What is going on, for :attr:`peaks`."""
        self._me = psutil.Process()
        self._before = set(self._me.children())
        self._known: dict[psutil.Process, None] = {}
        self._others: list[psutil.Process] = []
        self._every_s = every_s
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="footprint", daemon=True)

    def __enter__(self) -> Footprint:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def count_too(self, pid: int) -> None:
        """Count the memory of another process tree, which does not have to end with this one."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._others.append(psutil.Process(pid))

    def look(self) -> int:
        """Take note of all descendants now; returns their memory and this process's in bytes."""
        with self._lock:
            started = [child for child in self._me.children() if child not in self._before]
            for root in [*started, *self._known]:
                self._known.update(dict.fromkeys(tree(root)))
            self._known = {process: None for process in self._known if alive(process)}
            others = [member for root in self._others for member in tree(root)]
            total = sum(memory(process) for process in {self._me, *self._known, *others})
            self.peaks[self.step] = max(self.peaks.get(self.step, 0), total)
            return total

    @property
    def peak_bytes(self) -> int:
        """Largest sum of all steps."""
        return max(self.peaks.values(), default=0)

    def left(self) -> list[psutil.Process]:
        """Descendants that still run."""
        self.look()
        return list(self._known)

    def end_left(self) -> list[str]:
        """End what still runs; returns a description of each."""
        left = self.left()
        names = [describe(process) for process in left]
        processes.end(left, grace_s=5.0)
        return names

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self.look()


def tree(root: psutil.Process) -> list[psutil.Process]:
    """The process and its descendants; none if it has ended."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    """Whether the process still runs (a zombie does not)."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def memory(process: psutil.Process) -> int:
    """Memory of one process in bytes, shared pages divided among their users where the system tells."""
    try:
        if psutil.LINUX:
            return int(process.memory_full_info().pss)
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def describe(process: psutil.Process) -> str:
    """One line about a process."""
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:80] or process.name()}"
    except psutil.Error:
        return str(process.pid)
