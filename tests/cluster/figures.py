"""Figures of a long test, as the benchmarks report theirs: a results line, from which the docs have their numbers."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.report import Result, publish

KEEP = "KEEP_FIGURES"
"""In the environment: append the line to benchmarks/results too."""


def tell(bench: str, ours: float, baseline: float, unit: str, baseline_is: str, found: dict[str, Any]) -> None:
    """Print a results line, whose ``config`` is what was ``found``."""
    result = Result(bench, ours, baseline, unit, baseline_is, found)
    if os.environ.get(KEEP):
        publish(result)
    else:
        print(result.line(), flush=True)


def answered(asked: int, failed: int) -> float:
    """The share of requests that were answered."""
    return (asked - failed) / asked
