"""mDPO's reference computed ahead: a Ray Data job over the pairs, once for each epoch's degraded audio.

Training then makes no reference forward, one of a step's three passes: it is paid once instead of in every run over the
same pairs, and on whichever machines there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from ray.data import ActorPoolStrategy, Dataset, ExecutionResources

from stetholm.corpus.stream import CorpusStream
from stetholm.progress import Progress
from stetholm.roles import gpu_nodes
from stetholm.settings import TrainSettings
from stetholm.training.collate import Collate
from stetholm.training.job import StageJob
from stetholm.training.planning import epochs_to_plan
from stetholm.training.references import COLUMNS, SCORES, ReferenceStore
from stetholm.training.rows import training_rows

SCORED_TOGETHER = 4
"""Times the batch of a training step: nothing is kept for a backward pass."""


def ensure_references(job: StageJob) -> None:
    """Compute what ``dpo.reference=ahead`` of mDPO's ``job`` wants and is not there yet. Needs Ray."""
    store, epochs = ReferenceStore(job), epochs_to_plan(job, job.train.workers)
    stream = training_rows(job, epochs=epochs, ledger=store.consumed())
    rows = stream.rows_by_epoch(0)
    if not sum(rows):
        return
    with Progress("dpo: reference", sum(rows), unit="pairs") as progress:
        for epoch, table in _by_epoch(_scored(job, stream), rows):
            store.write(epoch, table)
            progress.update(sum(rows[: epoch + 1]))


def _scored(job: StageJob, stream: CorpusStream) -> Iterator[pa.Table]:
    """The pairs' scores, in the stream's order."""
    train, dataset = job.train, stream.dataset()
    actors = train.workers if train.use_gpu else min(train.workers, os.cpu_count() or 1)
    _make_room(dataset, actors, train)
    scored = dataset.map_batches(
        Scorer,
        fn_constructor_args=(job,),
        batch_size=SCORED_TOGETHER * train.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if train.use_gpu else 0,
        label_selector=gpu_nodes(train.use_gpu, train.label_selector),
    )
    yield from scored.iter_batches(batch_size=None, batch_format="pyarrow")


def _make_room(dataset: Dataset, actors: int, train: TrainSettings) -> None:
    """Let the dataset use what the actors need besides what its readers may."""
    options = dataset.context.execution_options
    limits = options.resource_limits
    options.resource_limits = ExecutionResources(
        cpu=(limits.cpu or 0) + actors,
        gpu=actors if train.use_gpu else 0,
        object_store_memory=2 * (limits.object_store_memory or 0),
    )


def _by_epoch(tables: Iterator[pa.Table], rows: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
    """Each epoch's scores as soon as all ``rows`` of it are there."""
    found: dict[int, list[dict[str, Any]]] = {}
    for table in tables:
        for row in table.to_pylist():
            found.setdefault(row["epoch"], []).append(row)
        for epoch in [epoch for epoch, have in found.items() if len(have) == rows[epoch]]:
            yield epoch, pa.Table.from_pylist(found.pop(epoch))


class Scorer:
    """A member of the pool: the model before mDPO, and what it makes of pairs."""

    def __init__(self, job: StageJob) -> None:
        from stetholm.training.response_head import install_response_head
        from stetholm.training.worker import prepare_of, stage_model

        if not job.train.use_gpu:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.train.workers))
        self._model: Any
        self._model, processor = stage_model(job, None)
        self._model.to("cuda" if job.train.use_gpu else "cpu")
        install_response_head(self._model)
        self._prepare, self._collate = prepare_of(job, processor), Collate("dpo", processor)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of the stream in; ``epoch``, ``sample_id`` and a column a response out."""
        from stetholm.training.trainers import reference_logps

        sounds = [sound.as_buffer() for sound in table["features"]]
        rows = [
            row | {"features": sound} | self._prepare(row)
            for row, sound in zip(table.drop_columns(["features"]).to_pylist(), sounds, strict=True)
        ]
        batch = {
            key: value.to(self._model.device) for key, value in self._collate(rows).items() if torch.is_tensor(value)
        }
        by_response = reference_logps(self._model, batch).double().cpu().chunk(len(SCORES))
        scored = table.select(list(COLUMNS[:2]))
        for name, part in zip(SCORES, by_response, strict=True):
            scored = scored.append_column(name, pa.array(part.numpy()))
        return scored
