"""``train/memory``: the peak of two SFT steps against what :mod:`stetholm.training.memory_plan` calculates of them.

Each case trains in a process of its own, on a CPU: its resident memory, less that of a process which has imported the
same, is what the calculator is about.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import transformers

from benchmarks.report import Result
from benchmarks.train.ours import paced_stage, stage_job
from benchmarks.train.samples import training_pairs
from benchmarks.train.sides import Loop, Pace, Turn, started
from stetholm.model.language import EMBEDDED_LM, load_language_model, load_tokenizer
from stetholm.settings import TrainSettings
from stetholm.training.fit import worker_environment
from stetholm.training.memory_plan import plan_for
from stetholm.training.ranks import join_group

STEPS = 2
RESPONSE = "The heart sound" + 98 * " sound" + "."
"""Of every sample, so that all are of one length."""
SAMPLES, CHECKPOINTING = (2, 8), (False, True)


def memory() -> Iterator[Result]:
    """Batches of two sizes, without and with gradient checkpointing."""
    load_language_model(EMBEDDED_LM, torch.bfloat16)  # unpacks the embedded one, once a machine
    scored = len(load_tokenizer(EMBEDDED_LM)(RESPONSE)["input_ids"]) + 1
    imports, _ = peak(import_the_same, 0)
    for samples, checkpointing in product(SAMPLES, CHECKPOINTING):
        train: dict[str, Any] = {"batch_size": samples, "gradient_checkpointing": checkpointing, "precision": "bf16"}
        measured, turn = peak(train_alike, STEPS, **train)
        length = turn.tokens // turn.samples
        calculated = plan_for(stage_job("sft", **train).settings, "sft", length, scored).need().total
        sizes = {"length": length, "scored": scored, "imports_mib": imports / 2**20}
        yield Result(
            "train/memory",
            calculated / 2**20,
            (measured - imports) / 2**20,
            "MiB",
            "the peak resident memory of two SFT steps on a CPU, less what the imports take; ours is memory_plan's",
            {"model": EMBEDDED_LM, "steps": STEPS, **train, **sizes},
        )


def peak(loop: Loop, steps: int, **options: Any) -> tuple[int, Turn]:
    """The peak of memory in bytes of a process that makes so many steps, and what they were of."""
    with started(loop, variables=worker_environment(TrainSettings()), **options) as side:
        turn = side.turn(steps) if steps else Turn(0.0, 0, 0)
        return side.end(), turn


def train_alike(pace: Pace, **train: Any) -> None:
    """SFT on samples that are all as long."""
    torch.manual_seed(0)
    join_group(use_gpu=False)
    alike = {"instruction": "What is heard?", "response": RESPONSE, "dataset": "heart"}
    paced_stage(pace, stage_job("sft", **train), [row | alike for row in training_pairs()])


def import_the_same(pace: Pace) -> None:
    """What :func:`train_alike` imports, without a model."""
    join_group(use_gpu=False)
    for name in ("LlamaForCausalLM", "EfficientNetModel", "AutoTokenizer"):  # transformers imports them when asked for
        getattr(transformers, name)
    print(f"bench: {len(sys.modules)} modules", file=sys.stderr, flush=True)
    pace.ready()
