"""How many steps an epoch is, known before the first: the learning rate's schedule ends where training does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from stetholm.corpus.stream import CorpusStream
from stetholm.training.batches import BatchPlan, Row
from stetholm.training.job import StageJob
from stetholm.training.ranks import from_all
from stetholm.training.rows import training_rows

LEAST_TOKENS = 16
"""Of a sample: a question, an answer and a recording have as many."""
_LENGTHS = ("input_ids", "rejected_input_ids")


def batch_plan(job: StageJob) -> BatchPlan:
    """How the stage's rows become batches.

    Alignment takes them as they come: its contrast is between the responses of a batch, and those of one length are
    often the same one. Its language model sees no padding either, unless it captions.
    """
    plan = BatchPlan(job.train.batch_size, job.train.tokens_per_batch)
    return replace(plan, window=1) if job.stage == "align" else plan


def planned_steps(stream: CorpusStream, plan: BatchPlan, prepare: Callable[[Row], Row], world: int) -> int:
    """Steps until the slowest rank has read its epochs; exact. A collective call.

    Batches that are counted in tokens are made once without sounds, of texts alone: a second for some ten thousand
    samples, whose texts each rank reads.
    """
    if plan.tokens_per_batch is None:
        return max(plan.steps(stream.rows_by_epoch(rank)) for rank in range(world))
    mine = sum(1 for _ in plan.batches(_outline(stream, prepare)))
    return max(from_all(mine))


def epochs_to_plan(job: StageJob, world: int) -> int:
    """Epochs to read: as many as set, or with max_steps as many as that many steps can use up at most."""
    train = job.train
    if train.max_steps is None:
        return math.ceil(train.epochs)
    rows = max(training_rows(job).rows_of(0) // world, 1)
    a_step = train.tokens_per_batch // LEAST_TOKENS if train.tokens_per_batch else train.batch_size
    return math.ceil(train.max_steps * a_step / rows)


def share_of(steps: int, epochs: float, left: float | None = None) -> int:
    """Of the ``steps`` that all rows left of ceil(epochs) epochs are, those that are to be made until ``epochs``.

    Args:
        steps: until every row has been used.
        epochs: to train in all.
        left: how many epochs' rows are left; None: all of them.
    """
    beyond = math.ceil(epochs) - epochs
    left = math.ceil(epochs) if left is None else left
    return math.ceil(round(steps * max(left - beyond, 0.0) / left, 6)) if left else 0


def _outline(stream: CorpusStream, prepare: Callable[[Row], Row]) -> Iterator[Row]:
    """The stream's rows as batching sees them: epoch, id and lengths."""
    known: dict[str, Row] = {}
    for row in stream.outline():
        sample = row["sample_id"]
        if sample not in known:
            prepared = prepare(row)
            known[sample] = {"sample_id": sample} | {
                name: range(len(prepared[name])) for name in _LENGTHS if name in prepared
            }
        yield known[sample] | {"epoch": row["epoch"]}
