"""Read tasks cover a plan's pieces, in order."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from stetholm.corpus.datasource import GroupRef, PlanDatasource, ShardReader
from stetholm.corpus.plan import Piece
from stetholm.storage import Storage


@pytest.mark.parametrize("pieces", [0, 1, 7, 8, 9, 40, 300, 20_000])
def test_tasks_hold_every_row_and_the_first_are_short(pieces: int) -> None:
    plan = [Piece(0, number % 50, np.arange(1 + number % 64)) for number in range(pieces)]
    groups = [GroupRef(f"train/part-{number}.parquet", "", 0) for number in range(50)]
    source = PlanDatasource(ShardReader(cast(Storage, None), "s3://bucket/corpus"), groups, plan)
    rows = [task.metadata.num_rows for task in source.get_read_tasks(1)]
    assert len(rows) == source.tasks <= 2_008
    assert sum(rows) == sum(len(piece.rows) for piece in plan)
    assert rows[:8] == [len(piece.rows) for piece in plan[:8]]
