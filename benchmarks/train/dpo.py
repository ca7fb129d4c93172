"""``train/dpo``: preference pairs a second of mDPO, and peak memory, against the published recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.report import Result
from benchmarks.train import recipes
from benchmarks.train.ours import train_ours
from benchmarks.train.sft import against_recipe
from benchmarks.train.sides import started
from stetholm.settings import TrainSettings
from stetholm.training.fit import worker_environment

BATCH, ROUNDS = 8, 8
"""Pairs of a turn, on both sides; turns in which both go through all pairs."""
RECIPE_IS = (
    "the published recipe: fp32, one pair a step, policy and reference as two models in memory, six forwards with "
    "logits of every position, AdamW over LoRA and projector"
)


def dpo() -> Iterator[Result]:
    """Eight pairs a step, as they come (bf16 where that is fast) and in fp32."""
    shared: dict[str, Any] = {"stage": "dpo", "batch_size": BATCH, "samples": BATCH * ROUNDS}
    shared["variables"] = worker_environment(TrainSettings())
    with (
        started(train_ours, **shared) as fast,
        started(train_ours, precision="fp32", **shared) as exact,
        started(recipes.train_dpo, samples=BATCH * ROUNDS) as recipe,
    ):
        sides = {"auto": fast, "fp32": exact, "recipe": recipe}
        yield from against_recipe("train/dpo", sides, 1, BATCH, RECIPE_IS, unit="pairs/s", batch=BATCH, rounds=ROUNDS)
