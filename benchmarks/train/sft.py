"""``train/sft``: samples a second of supervised fine-tuning, and peak memory, against the published recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.report import Result
from benchmarks.train import recipes
from benchmarks.train.ours import train_ours
from benchmarks.train.samples import COUNT
from benchmarks.train.sides import Side, Turn, in_turns, started
from stetholm.settings import TrainSettings
from stetholm.training.fit import worker_environment

STEPS = 2
"""Of a turn."""
ROUNDS = COUNT // (recipes.BATCH * STEPS)
"""Each side goes once through all samples, ours once before to warm up. Rates are of all turns together: our batches
are of like length each."""
RECIPE_IS = (
    "the published recipe: fp32, batch 16 as the samples come, logits of every position, a loop over the samples for "
    "their losses, AdamW over LoRA, projector and encoder"
)


def sft() -> Iterator[Result]:
    """Our step as it comes (bf16 where that is fast) and in fp32."""
    shared: dict[str, Any] = {
        "stage": "sft",
        "batch_size": recipes.BATCH,
        "variables": worker_environment(TrainSettings()),
    }
    with (
        started(train_ours, **shared) as fast,
        started(train_ours, precision="fp32", **shared) as exact,
        started(recipes.train_sft) as recipe,
    ):
        sides = {"auto": fast, "fp32": exact, "recipe": recipe}
        yield from against_recipe("train/sft", sides, STEPS, STEPS, RECIPE_IS, unit="samples/s", rounds=ROUNDS)


def against_recipe(
    bench: str, sides: dict[str, Side], ours: int, theirs: int, recipe_is: str, **more: Any
) -> Iterator[Result]:
    """A result for each of our sides against the one named ``recipe``: speed, then memory.

    Args:
        bench: name.
        sides: ``recipe``, and ours by precision or the like.
        ours: steps of our turns.
        theirs: steps of the recipe's.
        recipe_is: in words.
        more: ``unit``; ``rounds``, which are one way through all samples; what else the results' configuration holds.
    """
    unit = more.pop("unit")
    rounds = more.pop("rounds")
    steps = {name: theirs if name == "recipe" else ours for name in sides}
    turns = in_turns(
        sides, rounds=rounds, steps=steps, warm={name: ours * rounds for name in sides if name != "recipe"}
    )
    peaks = {name: side.end() for name, side in sides.items()}
    for name in sides:
        if name == "recipe":
            continue
        rates = together(turns[name]), together(turns["recipe"])
        config = {"side": name, "model": "smollm2-135m", "rounds": _rounds(turns[name], turns["recipe"]), **more}
        config |= {"peak_mib": peaks[name] / 2**20, "baseline_peak_mib": peaks["recipe"] / 2**20}
        yield Result(bench, *rates, unit, recipe_is, config)


def together(turns: list[Turn]) -> float:
    """Samples a second of all turns."""
    return sum(turn.samples for turn in turns) / sum(turn.seconds for turn in turns)


def _rounds(ours: list[Turn], theirs: list[Turn]) -> list[str]:
    return [f"{mine.rate:.2f}/{other.rate:.2f}" for mine, other in zip(ours, theirs, strict=True)]
