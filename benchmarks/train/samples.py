"""What the training benchmarks train on: the texts of the embedded corpus, in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from stetholm.audio.features import N_FRAMES, N_MELS
from stetholm.corpus.sources.synthetic import corpus_pairs, plan_corpus
from stetholm.settings import SyntheticSettings
from stetholm.training.batches import Row
from stetholm.training.job import StageJob

COUNT = 192


def training_pairs(count: int = COUNT) -> list[Row]:
    """Rows as the corpus stream gives them, of one recording each, in random order; the same at each call.

    Prompts and answers are those of the embedded corpus (the published recipe has one recording a prompt, so
    comparisons are left out), the spectrograms are random: what is in them does not change the speed. The rejected
    answer is another one of the same task.
    """
    rng = np.random.default_rng(0)
    pairs = corpus_pairs(plan_corpus(SyntheticSettings().patients, 0), 0)
    single = [pair for pair in pairs if isinstance(pair["filename"], str) and pair["split"] == "train"]
    order = rng.permutation(len(single))[:count]
    return [_row(single[index], single, rng) for index in order]


def _row(pair: dict[str, Any], pairs: list[dict[str, Any]], rng: np.random.Generator) -> Row:
    others = [one["response"] for one in pairs if one["task"] == pair["task"] and one["response"] != pair["response"]]
    return {
        "sample_id": f"{pair['filename']} {pair['task']}",
        "instruction": pair["instruction"],
        "response": pair["response"],
        "chosen": pair["response"],
        "rejected": others[int(rng.integers(len(others)))],
        "task": pair["task"],
        "dataset": pair["dataset"],
        "recordings": 1,
        "features": rng.random((1, N_MELS, N_FRAMES), np.float32).tobytes(),
    }


class MemoryStream:
    """Stands where a worker reads its corpus: rows in memory, in the same order each epoch, dealt to the ranks.

    Args:
        rows: all of them.
        job: unused, as the rows are there.
        epochs: how often they come.
        rank: whose rows.
        world_size: of how many.
        ledger: must be empty.
        prepare: called with each row.
        others: what a worker tells a stream and rows in memory need not know.
    """

    def __init__(
        self,
        rows: list[Row],
        job: StageJob,
        *,
        epochs: int = 1,
        rank: int = 0,
        world_size: int = 1,
        ledger: Any = None,
        prepare: Callable[[Row], Row] | None = None,
        **others: Any,
    ) -> None:
        if ledger is not None and len(ledger):
            raise ValueError("rows in memory cannot be gone on with")
        # Where reading tasks would prepare rows, that is done ahead.
        self._rows = [row | prepare(row) for row in rows] if prepare else rows
        self._epochs, self._rank, self._world = epochs, rank, world_size

    def rows_of(self, rank: int) -> int:
        """Rows that ``rank`` yields in all."""
        return len(self._rows[rank :: self._world]) * self._epochs

    def rows(self) -> Iterator[Row]:
        """Epoch after epoch."""
        for epoch in range(self._epochs):
            for row in self._rows[self._rank :: self._world]:
                yield row | {"epoch": epoch}
