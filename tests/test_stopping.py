"""Signals to stop: how often they count, and what holds after the block."""

import os
import signal
import threading

import pytest

from stetholm import stopping
from stetholm.stopping import Told, sigterm_kept, stop_signals


def tell(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_signals_close_together_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as stop:
        assert (stop.reason, stop.times) == (None, 0)
        tell()
        tell(signal.SIGINT)
        assert (stop.reason, stop.times) == ("stopped by SIGTERM", 1)
        monkeypatch.setattr(stopping, "SAME_SECONDS", 0.0)
        tell(signal.SIGINT)
        assert (stop.reason, stop.times) == ("stopped by SIGINT", 2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_given_back_in_between_is_not_told_again() -> None:
    cleaned = False
    with pytest.raises(Told, match=r"^stopped by SIGTERM$"), stop_signals(raises=True):
        try:
            tell()
        finally:
            tell()
            cleaned = True
    assert cleaned


def test_in_another_thread_than_the_main_one_nothing_is_taken() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def look() -> None:
        with stop_signals(raises=True) as stop:
            seen.extend([signal.getsignal(signal.SIGTERM), stop.reason])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before, None]


def test_a_library_does_not_take_sigterm_away() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before
