"""Leaving: SIGTERM to one of two processes, and all stop after the same step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from stetholm.training import leaving
from tests.training.together import two_ranks

STUBBORN = """
import sys, time
from stetholm.training.leaving import heed_sigterm
heed_sigterm(0.2)
print("ready", flush=True)
time.sleep(120)
"""


def _worker(number: int, results) -> None:
    leaving.heed_sigterm(60)
    votes = leaving.Votes()
    step = 0
    while not votes.leave:
        step += 1
        assert votes(number == 1)  # whether anyone has samples is asked in the same call
        if step == 5 and number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if number == 0:
            time.sleep(0.01)
    results[number] = (step, votes.reason())


def test_all_ranks_leave_after_the_same_step() -> None:
    results = two_ranks(_worker)
    assert results[0] == results[1]
    assert results[0][0] == 6 and results[0][1].endswith("was sent SIGTERM")


def test_who_does_not_leave_in_time_is_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == b"ready\n"
        child.terminate()
        assert child.wait(timeout=60) == 128 + signal.SIGTERM
        assert b"the grace period is over" in child.stderr.read()


def test_sources_are_asked_and_forgotten() -> None:
    reasons: list[str | None] = [None]
    leaving.watch(lambda: reasons[0])
    try:
        votes = leaving.Votes()
        assert votes(True) and not votes.leave
        reasons[0] = "the node goes"
        assert not votes(False) and votes.leave and votes.reason() == "the node goes"
        leaving.ask("told so")
        assert leaving.asked() == "told so"
    finally:
        leaving.forget()
    assert leaving.asked() is None
