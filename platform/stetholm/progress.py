"""Progress of a job: a bar on a terminal, sparse lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar
from rich.table import Column

LINE_SECONDS = 2.0
"""At least this long between two lines in a log."""


class Progress:
    """Shows how far a job is, on stderr; use as a context manager.

    On a terminal it is a bar with the time left. Elsewhere (a log, ``ray job submit``) it is at most one line every two
    seconds and a last one: ``sft  40/120  loss 1.234  samples/s 3.2  eta 2:10``.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        unit: str = "",
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make it; nothing is shown yet.

        Args:
            name: what is going on, e.g. ``sft``.
            total: how much there is to do, in ``unit``; None if unknown.
            unit: e.g. ``steps``.
            stream: where to write; default stderr.
            clock: seconds; for tests.
        """
        self._name, self._total, self._unit = name, total, unit
        self._stream, self._clock = stream or sys.stderr, clock
        self._bar = self._make_bar() if self._stream.isatty() else None
        self._first: tuple[float, int] | None = None
        self._shown_at = -LINE_SECONDS
        self._pending: str | None = None

    def update(self, done: int, **numbers: float | str) -> None:
        """Say that ``done`` of ``total`` is done (not by how much it grew), and what the current numbers are."""
        now = self._clock()
        self._first = self._first or (now, done)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, numbers="  ".join(_shown(numbers)))
            return
        self._pending = self._line(now, done, numbers)
        if now - self._shown_at >= LINE_SECONDS:
            self._write(now)

    def __enter__(self) -> Progress:
        self._shown_at = self._clock() - LINE_SECONDS
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._write(self._clock())

    def _write(self, now: float) -> None:
        """Write the latest line if it has not been written yet."""
        if self._pending is not None:
            print(self._pending, file=self._stream, flush=True)
            self._pending, self._shown_at = None, now

    def _line(self, now: float, done: int, numbers: dict[str, float | str]) -> str:
        count = f"{done}" if self._total is None else f"{done}/{self._total}"
        eta = self._eta(now, done)
        parts = [self._name, f"{count} {self._unit}".rstrip(), *_shown(numbers)]
        return "  ".join(parts + ([f"eta {_minutes(eta)}"] if eta is not None else []))

    def _eta(self, now: float, done: int) -> float | None:
        """Seconds left at the pace since the first update: a continued job's earlier steps took no time now."""
        if self._total is None or self._first is None or done >= self._total:
            return None
        began, at = self._first
        return (now - began) / (done - at) * (self._total - done) if done > at else None

    def _make_bar(self) -> RichBar:
        # The numbers get what room there is and are cut, not wrapped: one line stays one line.
        numbers = TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
        bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            *([TextColumn(self._unit)] if self._unit else []),
            TimeRemainingColumn(),
            numbers,
            expand=True,
            console=Console(file=self._stream),
        )
        bar.add_task(self._name, total=self._total, numbers="")
        return bar


def _shown(numbers: dict[str, float | str]) -> list[str]:
    """``loss 1.234``: four significant digits; a key's ``_per_`` reads as ``/``."""
    return [f"{name.replace('_per_', '/')} {_digits(value)}" for name, value in numbers.items()]


def _digits(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
