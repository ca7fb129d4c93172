"""What the demo shows: on a terminal one live bar a job, elsewhere a line now and then."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from stetholm.demo.lines import Step

QUIET_S = 10.0
"""Shortest time between two lines of one job where there is no terminal."""


def clock(seconds: float) -> str:
    """``m:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class JobDisplay:
    """The bar of one job."""

    def __init__(self, console: Console, name: str) -> None:
        """Show the job ``name`` on ``console``."""
        self._console = console
        self._name = name
        self._started = time.monotonic()
        self._last = 0.0
        self._bars = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[count]:>11}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            # What room there is; cut, not wrapped.
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=console,
            expand=True,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar: TaskID = self._bars.add_task(name, total=None, count="", numbers="starting")

    def __enter__(self) -> JobDisplay:
        self._bars.start()
        if not self._console.is_terminal:
            self._console.print(f"{self._name} …")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, step: Step) -> None:
        """Show a line of progress. A job may have several parts, each with its own name and count."""
        label = step.name if step.name.startswith(self._name) else f"{self._name}: {step.name}"
        count = f"{step.done}/{step.total}" if step.total else str(step.done)
        self._bars.update(
            self._bar, description=label, completed=step.done, total=step.total, count=count, numbers=step.numbers
        )
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last >= QUIET_S:
            self._last = now
            self._console.print(f"  {label}  {count}  {step.numbers}  {clock(now - self._started)}", markup=False)
