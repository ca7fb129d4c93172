"""Training loops that take turns, each in processes of its own.

What disturbs the machine disturbs both sides, and each has a peak of memory of its own. The loop of a side calls its
:class:`Pace` once before the first step and once after each; between its turns it waits there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from stetholm.training.ranks import free_port

Loop = Callable[..., None]
"""``loop(pace, **options)``: trains until the pace says that it is over."""

ENDED = 120.0
"""Seconds that a side may take to end."""


@dataclass(frozen=True)
class Turn:
    """Some steps: how long they took, of what, and the FLOPs where they are counted."""

    seconds: float
    samples: int
    tokens: int
    flops: float = 0.0

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds


class Pace:
    """The loop's end of the line: says when to go on, and measures the steps of a turn."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._left, self._samples, self._tokens, self._flops, self._started = 0, 0, 0, 0.0, 0.0

    def ready(self) -> bool:
        """Call before the first step; False: make none."""
        self._left = self._line.recv()
        self._samples, self._tokens, self._flops = 0, 0, 0.0
        if not self._left:
            self._line.send(peak_memory())
        self._started = time.perf_counter()
        return bool(self._left)

    def step(self, samples: int, tokens: int, flops: float = 0.0) -> bool:
        """Call after each step with what it trained on and cost; False: make no more."""
        self._samples += samples
        self._tokens += tokens
        self._flops += flops
        self._left -= 1
        if self._left:
            return True
        finish()
        self._line.send(Turn(time.perf_counter() - self._started, self._samples, self._tokens, self._flops))
        return self.ready()


class Side:
    """One of those who take turns: the other end of the lines to its ranks."""

    def __init__(self, lines: Sequence[Connection], processes: Sequence[BaseProcess] = ()) -> None:
        self.lines, self._processes = lines, processes

    def turn(self, steps: int) -> Turn:
        """``steps`` of all ranks together.

        Raises:
            RuntimeError: a process of this side has died; it has said why.
        """
        turns = self._ask(steps)
        samples, tokens, flops = (sum(getattr(turn, name) for turn in turns) for name in ("samples", "tokens", "flops"))
        return Turn(max(turn.seconds for turn in turns), samples, tokens, flops)

    def end(self) -> int:
        """Let the loops end; the sum of the processes' peaks of memory in bytes."""
        peaks: list[int] = self._ask(0)
        for process in self._processes:
            process.join(ENDED)
        return sum(peaks)

    def stop(self) -> None:
        """End its processes at once, if they still run."""
        for process in self._processes:
            if process.is_alive():
                process.terminate()
                process.join()

    def _ask(self, what: int) -> list[Any]:
        for line in self.lines:
            line.send(what)
        try:
            return [line.recv() for line in self.lines]
        except (EOFError, ConnectionError) as error:
            raise RuntimeError("one side of a benchmark has died: see above") from error


@contextlib.contextmanager
def started(
    loop: Loop,
    *,
    ranks: int = 1,
    cores: int | None = None,
    first_core: int = 0,
    variables: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Side]:
    """A side of one process a rank; ends with the block.

    Args:
        loop: importable, since the processes are spawned.
        ranks: how many train together; they find the variables that torch.distributed reads.
        cores: of each rank, which is bound to them; None: all.
        first_core: of the first rank.
        variables: of the environment, as training workers get them.
        options: for the loop.
    """
    lines, processes, port = [], [], free_port()
    for rank in range(ranks):
        ours, theirs = multiprocessing.Pipe()
        places = None if cores is None else [first_core + rank * cores + place for place in range(cores)]
        process = multiprocessing.get_context("spawn").Process(
            target=_run, args=(loop, theirs, places, options), daemon=True
        )
        with environment(group_variables(rank, ranks, port) | threads(ranks, cores) | dict(variables or {})):
            process.start()
        theirs.close()
        lines.append(ours)
        processes.append(process)
    side = Side(lines, processes)
    try:
        yield side
    finally:
        side.stop()


def in_turns(
    sides: Mapping[str, Side], *, rounds: int, steps: Mapping[str, int], warm: Mapping[str, int] | None = None
) -> dict[str, list[Turn]]:
    """The turns of each side, after some steps to warm up; every second round in the opposite order.

    Args:
        sides: by name.
        rounds: turns of each.
        steps: of one turn, by name.
        warm: steps before the first turn, by name; default: two, or one where a turn has no more.
    """
    for name, side in sides.items():
        side.turn((warm or {}).get(name) or min(steps[name], 2))
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            turn = sides[name].turn(steps[name])
            print(f"bench: {name}: {turn.rate:.2f} samples/s in {turn.seconds:.1f} s", file=sys.stderr, flush=True)
            turns[name].append(turn)
    return turns


def rounds_of(ours: Sequence[Turn], theirs: Sequence[Turn]) -> list[tuple[float, float, float]]:
    """Samples a second of each round, as :func:`benchmarks.report.median_round` takes them."""
    return [(mine.rate, 0.0, other.rate) for mine, other in zip(ours, theirs, strict=True)]


def peak_memory() -> int:
    """The largest resident size that this process has had, in bytes; of GPU memory too, where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Not getrusage's: that begins with the size of the process which started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def finish() -> None:
    """Wait for what a GPU still has to do."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def group_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torch.distributed and DeepSpeed read, for processes of one machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}


def threads(ranks: int, cores: int | None) -> dict[str, str]:
    """For what starts its threads on import; training divides the machine's cores by LOCAL_WORLD_SIZE."""
    if cores is None:
        return {"LOCAL_WORLD_SIZE": str(ranks)}
    return {"OMP_NUM_THREADS": str(cores), "LOCAL_WORLD_SIZE": str((os.cpu_count() or 1) // cores)}


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """``variables`` in the environment of processes that are started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(loop: Loop, line: Connection, places: list[int] | None, options: dict[str, Any]) -> None:
    import torch

    if places is not None:
        os.sched_setaffinity(0, places)
    torch.set_num_threads(len(places) if places else os.cpu_count() or 1)
    loop(Pace(line), **options)
