"""Verdicts of a judge on storage, so that none is paid for twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from stetholm.evaluation.parts import PartStore


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one answer.

    Attributes:
        correct: None: unjudged.
        score: 0 to 1; None: unjudged.
        reason: the judge's, or why there is no verdict.
    """

    correct: bool | None
    score: float | None
    reason: str = ""


class VerdictStore(PartStore[Verdict]):
    """Verdicts by key; the URI belongs to one judge and prompt."""

    flush_seconds = 5.0
    """Shorter than elsewhere: what is lost has been paid for."""

    def columns(self, values: Sequence[Verdict]) -> dict[str, pa.Array]:
        """One of each attribute."""
        return {
            "correct": pa.array([one.correct for one in values], pa.bool_()),
            "score": pa.array([one.score for one in values], pa.float64()),
            "reason": pa.array([one.reason for one in values], pa.string()),
        }

    def values(self, table: pa.Table) -> list[Verdict]:
        """The verdicts of a part."""
        return [Verdict(row["correct"], row["score"], row["reason"]) for row in table.to_pylist()]
