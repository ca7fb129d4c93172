"""``train/overhead``: what our step costs beside a bare loop on DeepSpeed's engine, and what Ray Train adds to it."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.connection import Client, Listener
from typing import Any

from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig

from benchmarks.data.bare import children_but, stopped
from benchmarks.report import Result, median_round
from benchmarks.train.bare import train_bare
from benchmarks.train.ours import train_ours
from benchmarks.train.sides import Pace, Side, Turn, environment, in_turns, rounds_of, started
from stetholm.ray_session import ray_session
from stetholm.settings import TrainSettings
from stetholm.training.fit import worker_environment

BATCH, STEPS, ROUNDS = 16, 2, 11
"""Samples a step; steps a turn; turns of each side. Both make the same batches in the same order."""
ENGINE_IS = "a bare loop on the DeepSpeed engine: the same model, optimizer and loss, the same batches made ahead"
PLAIN_IS = "the same run_stage on the same rows in memory in a plain process"


def overhead() -> Iterator[Result]:
    """Our step against the bare loop; then a Ray Train worker against a plain process."""
    with environment(worker_environment(TrainSettings())):
        yield engine_overhead()
        yield ray_overhead()


def engine_overhead() -> Result:
    """Steps of both by turns, each pair of turns on the same batches."""
    with started(train_ours, stage="sft", batch_size=BATCH) as ours, started(train_bare, batch_size=BATCH) as bare:
        turns = in_turns({"ours": ours, "bare": bare}, rounds=ROUNDS, steps={"ours": STEPS, "bare": STEPS})
    return _result(turns["ours"], turns["bare"], ENGINE_IS)


def ray_overhead() -> Result:
    """Ray and its worker are held still while the plain process has its turns."""
    with ray_session(), ray_side() as inside, started(train_ours, stage="sft", batch_size=BATCH) as plain:
        held = _Held(plain, multiprocessing.active_children())
        turns = in_turns({"ray": inside, "plain": held}, rounds=ROUNDS, steps={"ray": STEPS, "plain": STEPS})
        inside.end()
    return _result(turns["ray"], turns["plain"], PLAIN_IS)


@contextlib.contextmanager
def ray_side() -> Iterator[Side]:
    """A side whose loop runs in the one worker of a TorchTrainer."""
    with tempfile.TemporaryDirectory(prefix="stetholm-bench-") as folder, Listener() as listener:
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"address": listener.address},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(  # type: ignore[call-arg]  # Train v2 has more than its stub says
                name="bench",
                storage_path=folder,
                logging_config=LoggingConfig(log_level="WARNING"),
                worker_runtime_env={"env_vars": worker_environment(TrainSettings())},
            ),
        )
        fit = threading.Thread(target=trainer.fit)
        fit.start()
        with listener.accept() as line:
            yield Side([line])
            fit.join()


def _ray_worker(config: dict[str, Any]) -> None:
    with Client(config["address"]) as line:
        train_ours(Pace(line), stage="sft", batch_size=BATCH)


class _Held(Side):
    """A side during whose turns Ray stands still."""

    def __init__(self, side: Side, others: list[Any]) -> None:
        self._side, self._others = side, others

    def turn(self, steps: int) -> Turn:
        with stopped(children_but(self._others)):
            return self._side.turn(steps)


def _result(ours: list[Turn], theirs: list[Turn], baseline_is: str) -> Result:
    rounds = rounds_of(ours, theirs)
    rates = median_round(rounds)
    config = {
        "batch": BATCH,
        "steps_a_turn": STEPS,
        "overhead_percent": 100 * (rates[1] / rates[0] - 1),
        "rounds": [f"{mine:.2f}/{other:.2f}" for mine, _, other in rounds],
    }
    return Result("train/overhead", *rates, "samples/s", baseline_is, config)
