"""``train/recovery``: a worker is killed, and training is where it was and one step further; against starting anew."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import psutil
import torch

from benchmarks.report import Result
from stetholm.corpus.ingest import ingest
from stetholm.model.language import load_language_model
from stetholm.ray_session import ray_session
from stetholm.runs import run_uri
from stetholm.settings import Settings, load_settings
from stetholm.storage import Storage, open_storage
from stetholm.training.checkpoints import Checkpoints
from stetholm.training.history import FILE, from_lines
from stetholm.training.stage import train_stage

STEPS, EVERY, PATIENTS, KILLS = 30, 5, 48, 2
LOOK_SECONDS = 0.05
SETTINGS = (
    "run.name=bench-recovery",
    f"corpus.synthetic.patients={PATIENTS}",
    "train.workers=2",
    f"train.max_steps={STEPS}",
    f"train.checkpoint_every={EVERY}",
    f"train.keep_checkpoints={STEPS}",
    f"train.max_failures={KILLS}",
    "train.log_every=1",
    "train.trackers=[]",
)


@dataclass(frozen=True)
class Kill:
    """A worker was sent SIGKILL at ``time`` (seconds since 1970), when the latest checkpoint was that of ``step``."""

    step: int
    time: float


def recovery() -> Iterator[Result]:
    """A real SFT of the embedded model with the default settings and two workers, one of them killed now and then.

    A new step is one that had not been made before the kill: steps since the checkpoint are made once more first.
    """
    settings = load_settings(None, SETTINGS)
    storage = open_storage(settings.storage)
    load_language_model(settings.model.language_model, torch.bfloat16)  # unpacks the embedded one, once a machine
    with ray_session():
        ingest(settings, storage)
        kills: list[Kill] = []
        killer = threading.Thread(target=_kill, args=(settings, storage, kills), daemon=True)
        killer.start()
        began = time.time()
        trained = train_stage(settings, storage, "sft")
    times = {record["step"]: record["time"] for record in from_lines(storage.read_text(f"{trained['output']}/{FILE}"))}
    seconds = [_until_new(kill, times) for kill in kills]
    yield Result(
        "train/recovery",
        median(seconds),
        times[1] - began,
        "s",
        "starting the same run from nothing to the end of its first step, in the same Ray (less is better)",
        {
            "kills": [round(each, 2) for each in seconds],
            "workers": 2,
            "checkpoint_every": EVERY,
            "steps": trained["steps"],
            "samples": trained["samples"],
        },
    )


def _kill(settings: Settings, storage: Storage, kills: list[Kill]) -> None:
    """Kill one of the workers after every third checkpoint, some moments later: in the midst of a step or an upload."""
    checkpoints = Checkpoints(storage, run_uri(settings, storage, "sft"), keep=STEPS)
    chance = random.Random(settings.run.seed)
    while len(kills) < KILLS:
        time.sleep(LOOK_SECONDS)
        latest = checkpoints.latest()
        if latest is not None and latest.step >= (3 * len(kills) + 1) * EVERY:
            time.sleep(chance.random())
            victim = chance.choice(train_workers())
            kills.append(Kill(latest.step, time.time()))
            victim.kill()


def train_workers() -> list[psutil.Process]:
    """The Ray Train workers below this process's Ray."""
    return [process for process in psutil.Process().children(recursive=True) if _is_worker(process)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return False


def _until_new(kill: Kill, times: dict[int, float]) -> float:
    """Seconds from a kill to the end of the first step that had not been made before it.

    The curve has the steps after the checkpoint as they were made again; how far the killed workers had come follows
    from the pace of the steps before it.
    """
    pace = (times[kill.step] - times[kill.step - EVERY + 1]) / (EVERY - 1)
    made = kill.step + int((kill.time - times[kill.step]) / pace)
    return times[made + 1] - kill.time
