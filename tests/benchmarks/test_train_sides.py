"""Loops that take turns in processes of their own."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from benchmarks.train.sides import Pace, Turn, in_turns, peak_memory, started


def counting(pace: Pace, *, seconds: float = 0.0) -> None:
    """A loop whose steps take ``seconds`` and are of two samples with three tokens each."""
    going = pace.ready()
    while going:
        time.sleep(seconds)
        going = pace.step(2, 6, 10.0)


def failing(pace: Pace) -> None:
    pace.ready()
    raise ValueError("it does not train")


def ranks(pace: Pace) -> None:
    """Says its rank, as a number of samples."""
    going = pace.ready()
    while going:
        going = pace.step(int(os.environ["RANK"]) + 1, int(os.environ["WORLD_SIZE"]))


def test_a_turn_holds_so_many_steps() -> None:
    with started(counting, seconds=0.05) as side:
        first, second = side.turn(3), side.turn(1)
        assert (first.samples, first.tokens, first.flops) == (6, 18, 30.0)
        assert first.seconds >= 3 * 0.05
        assert (second.samples, second.tokens, second.flops) == (2, 6, 10.0)
        assert first.rate == first.samples / first.seconds
        assert side.end() > 2**20


@pytest.mark.long
def test_ranks_are_one_side() -> None:
    with started(ranks, ranks=2) as side:
        turn = side.turn(2)
    assert (turn.samples, turn.tokens) == (2 * (1 + 2), 2 * (2 + 2))


@pytest.mark.long
def test_each_side_has_as_many_turns() -> None:
    with started(counting) as one, started(counting) as other:
        turns = in_turns({"one": one, "other": other}, rounds=3, steps={"one": 1, "other": 4})
    assert [turn.samples for turn in turns["one"]] == [2] * 3
    assert [turn.samples for turn in turns["other"]] == [8] * 3
    assert all(isinstance(turn, Turn) for turn in turns["one"])


def test_a_side_that_dies_is_no_result() -> None:
    with started(failing) as side, pytest.raises(RuntimeError, match="one side of a benchmark has died"):
        side.turn(1)


def test_the_peak_of_memory_stays_when_memory_is_freed() -> None:
    held = bytearray(b"x" * (64 * 2**20))
    resident = psutil.Process().memory_info().rss
    peak = peak_memory()
    del held
    # The kernel counts pages by CPU and sums them up now and then: some hundred kilobytes may be missing.
    assert peak > resident - 2**20 and peak_memory() > peak - 2**20
