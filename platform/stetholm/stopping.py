"""Being told to stop: SIGTERM, which is what ``ray job stop`` and Kubernetes send, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_SECONDS = 2.0
"""Signals so close together are one: a stage of a pipeline gets Ray's own and the one that the pipeline passes on."""


class Told(KeyboardInterrupt):
    """This process was told to stop; the message says by which signal."""


class Stop:
    """Whether this process was told to stop, and how often."""

    def __init__(self, *, raises: bool = False) -> None:
        """``raises``: each time, raise Told in the main thread, wherever it is."""
        self.reason: str | None = None
        self.times = 0
        self._raises = raises
        self._last = -SAME_SECONDS

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        now = time.monotonic()
        if now - self._last < SAME_SECONDS:
            return
        self._last = now
        self.reason = f"stopped by {signal.Signals(number).name}"
        self.times += 1
        if self._raises:
            raise Told(self.reason)


@contextmanager
def stop_signals(*, raises: bool = False) -> Iterator[Stop]:
    """Within the block SIGTERM and SIGINT are taken down; in another thread than the main one they are not ours.

    Args:
        raises: raise :class:`Told` at each; else the block looks at what is yielded.
    """
    stop = Stop(raises=raises)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """After the block SIGTERM does what it did before it: ``ray.init`` makes it end the process."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)
