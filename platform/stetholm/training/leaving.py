"""Leaving in order: somebody asks this training to go, and all ranks stop after the same step, with a checkpoint of it.

Who asks: the system that sends SIGTERM to a worker, Ray that is about to take a node away, or the driver. A request
reaches one rank; the ranks agree in the collective call that they make each step anyway (see :class:`Votes`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

Source = Callable[[], str | None]
"""Says why this process should leave, if it should; asked once a step, so it must cost nothing."""

_reasons: list[str] = []
_sources: list[Source] = []


def ask(reason: str) -> None:
    """Have the training of this process leave after the current step. From any thread, or a signal handler."""
    _reasons.append(reason)


def asked() -> str | None:
    """Why this process should leave; None: it should not."""
    if _reasons:
        return _reasons[0]
    return next((reason for source in _sources if (reason := source())), None)


def watch(source: Source) -> None:
    """Ask ``source`` too, in each step."""
    _sources.append(source)


def forget() -> None:
    """As if nobody had asked."""
    _reasons.clear()
    _sources.clear()


def heed_sigterm(grace_seconds: float) -> None:
    """From now on SIGTERM asks this process to leave; it ends ``grace_seconds`` later whether it has left or not.

    Call it in the main thread.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if not _reasons:
            timer = threading.Timer(grace_seconds, _end)
            timer.daemon = True
            timer.start()
        ask(f"worker process {os.getpid()} was sent SIGTERM")

    signal.signal(signal.SIGTERM, handle)


def _end() -> None:
    print("training: the grace period is over: this worker ends without a checkpoint", file=sys.stderr, flush=True)
    os._exit(128 + signal.SIGTERM)


class Votes:
    """What the ranks agree on once a step, all in one collective call."""

    def __init__(self) -> None:
        self.leave = False
        """Whether all ranks leave after the step whose batch has been given last."""

    def __call__(self, more: bool) -> bool:
        """Whether any rank has samples left; ``more`` says whether this one has. A collective call."""
        from stetholm.training.ranks import any_of_each  # here, as it brings torch, which the driver does without

        left, self.leave = any_of_each([more, asked() is not None])
        return left

    def reason(self) -> str:
        """Why, by the first rank that was asked; a collective call."""
        from stetholm.training.ranks import from_all

        return next(reason for reason in from_all(asked()) if reason)
