"""``report.json``: all figures of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stetholm.evaluation.classes import class_tables
from stetholm.evaluation.scoring import Draws, Scored, binary, cells, figures, grouped
from stetholm.progress import Progress


def make_report(scored: Sequence[Scored], conditions: Sequence[str], draws: Draws) -> dict[str, Any]:
    """Figures with intervals: overall, by task, dataset, distribution and all three, and of the classes named.

    Args:
        scored: examples with their answers.
        conditions: that were asked, the audio as it is first.
        draws: of the bootstrap.
    """
    steps = {
        "overall": lambda: figures(scored, conditions, draws),
        "tasks": lambda: grouped(scored, lambda example: example.task, conditions, draws),
        "datasets": lambda: grouped(scored, lambda example: example.dataset, conditions, draws),
        "distributions": lambda: grouped(scored, lambda example: example.distribution, conditions, draws),
        "cells": lambda: cells(scored, conditions, draws),
        "binary": lambda: binary(scored, conditions, draws),
        "classes": lambda: class_tables(scored, conditions, draws),
    }
    report: dict[str, Any] = {"examples": len(scored), "draws": draws.count}
    with Progress("evaluate: intervals", len(steps), "tables") as progress:
        for place, (name, make) in enumerate(steps.items(), 1):
            report[name] = make()
            progress.update(place)
    return report
