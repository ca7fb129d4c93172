"""``train/scaling``: two workers of one core each against one: the share of twice its speed that they reach."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from benchmarks.report import Result, median_round
from benchmarks.train.ours import train_ours
from benchmarks.train.sides import Side, in_turns, started
from stetholm.settings import TrainSettings
from stetholm.training.fit import worker_environment

BATCH, STEPS, ROUNDS = 8, 3, 8
"""Samples of one worker and step; steps a turn."""
TWICE_IS = "twice the samples/s of one worker on one core; both under ZeRO-2, each worker with a batch of its own"


def scaling() -> Iterator[Result]:
    """And, in the configuration, what the machine allows: two at once that have nothing to do with each other."""
    variables = worker_environment(TrainSettings())
    with contextlib.ExitStack() as stack:
        one, other, two = (
            stack.enter_context(
                started(
                    train_ours,
                    ranks=ranks,
                    cores=1,
                    first_core=first,
                    variables=variables,
                    stage="sft",
                    batch_size=BATCH,
                )
            )
            for ranks, first in ((1, 0), (1, 1), (2, 0))
        )
        sides = {"one": one, "two": two, "apart": Apart(one, other)}
        turns = in_turns(sides, rounds=ROUNDS, steps=dict.fromkeys(sides, STEPS))
    rounds = [(two.rate, 0.0, 2 * one.rate) for two, one in zip(turns["two"], turns["one"], strict=True)]
    apart = [(two.rate, 0.0, 2 * one.rate) for two, one in zip(turns["apart"], turns["one"], strict=True)]
    config = {
        "batch_a_worker": BATCH,
        "rounds": [f"{mine:.2f}/{other:.2f}" for mine, _, other in rounds],
        "ceiling": _ratio(apart),
        "ceiling_is": "two processes at once that train apart, without any exchange, over twice one of them",
    }
    yield Result("train/scaling", *median_round(rounds), "samples/s", TWICE_IS, config)


class Apart(Side):
    """Two sides at once, as if they were one."""

    def __init__(self, *sides: Side) -> None:
        super().__init__([line for side in sides for line in side.lines])


def _ratio(rounds: list[tuple[float, float, float]]) -> float:
    ours, baseline = median_round(rounds)
    return ours / baseline
