"""The plan's model against measured runs: each run's time is predicted from the others and compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stetholm.errors import UserError
from stetholm.markdown import table

FEWEST = 3
"""A line goes through any two points: it takes a third to be wrong."""


@dataclass(frozen=True)
class Point:
    """A measured run: how much it did, and how long it took from its start to its end."""

    work: float
    seconds: float


@dataclass(frozen=True)
class Line:
    """time = fixed + work / rate."""

    fixed: float
    rate: float

    def seconds(self, work: float) -> float:
        """Predicted for ``work`` samples."""
        return self.fixed + work / self.rate


def read_points(files: Sequence[Path]) -> list[Point]:
    """Points of what jobs print last, ``RESULT {…}``, with ``samples`` and ``seconds``.

    Raises:
        UserError: a file has no such line, or there are fewer than three of different sizes.
    """
    points = []
    for file in files:
        try:
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("RESULT ")]
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from None
        results = [json.loads(line.removeprefix("RESULT ")) for line in lines]
        found = [Point(each["samples"], each["seconds"]) for each in results if "samples" in each and "seconds" in each]
        if not found:
            raise UserError(f"{file}: no RESULT line of a training job, with samples and seconds")
        points += found
    if len({point.work for point in points}) < FEWEST:
        raise UserError(f"--check takes runs of at least {FEWEST} sizes: a line goes through any two points")
    return sorted(points, key=lambda point: point.work)


def fit(points: Sequence[Point]) -> Line:
    """The line with the least squares of relative errors: long runs do not outweigh short ones.

    Raises:
        UserError: more work did not take longer, so that there is no rate.
    """
    weights = [1 / point.seconds**2 for point in points]
    total = sum(weights)
    work = sum(w * p.work for w, p in zip(weights, points, strict=True)) / total
    time = sum(w * p.seconds for w, p in zip(weights, points, strict=True)) / total
    spread = sum(w * (p.work - work) ** 2 for w, p in zip(weights, points, strict=True))
    slope = sum(w * (p.work - work) * (p.seconds - time) for w, p in zip(weights, points, strict=True))
    if spread <= 0 or slope <= 0:
        raise UserError("--check: larger runs did not take longer, so that no rate can be told")
    return Line(time - slope / spread * work, spread / slope)


def report(points: Sequence[Point]) -> str:
    """Each point predicted from the others, in Markdown; then the line through all."""
    rows = []
    for index, point in enumerate(points):
        predicted = fit([*points[:index], *points[index + 1 :]]).seconds(point.work)
        error = predicted / point.seconds - 1
        rows.append((f"{point.work:,.0f}", f"{point.seconds:.1f}", f"{predicted:.1f}", f"{error:+.1%}"))
    line = fit(points)
    header = ("samples", "measured, s", "predicted from the others, s", "error")
    return f"{table(header, rows, texts=0)}\n\nThrough all: {line.fixed:.1f} s and {line.rate:.2f} samples/s."
