"""Means of many columns, and what is made of means, with bootstrap intervals over patients from one set of draws.

The columns share the draws, so a difference of two columns is a paired one. The clusters are drawn as in
:mod:`stetholm.evaluation.bootstrap`; sums are taken a cluster first, so that a draw costs one weight a patient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stetholm.evaluation.bootstrap import DRAWS, LEVEL, Estimate, cluster_weights

Array = NDArray[np.float64]
Combine = Callable[[Array], Array]
"""Means (..., columns) -> a figure (...)."""


def patient_cluster(dataset: str, patient: str, recordings: Sequence[str]) -> str:
    """To whom an example belongs: its patient, or its recording where no patient is known.

    A comparison of several patients (joined with ``+``) belongs to its first.
    """
    return f"{dataset}/{patient.split('+')[0] or recordings[0]}"


class Resampled:
    """Weighted means of columns, of the data and of every draw."""

    def __init__(self, columns: ArrayLike, clusters: Sequence[str], draws: int = DRAWS, seed: int = 0) -> None:
        """Draw.

        Args:
            columns: (n, columns); NaN where a column has no value, which then does not count.
            clusters: (n,) to whom each row belongs.
            draws: of the bootstrap.
            seed: of the draws; the same clusters and seed give the same draws.
        """
        values = np.asarray(columns, dtype=np.float64)
        known = np.isfinite(values)
        names, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        sums, counts = np.zeros((2, len(names), values.shape[1]))
        np.add.at(sums, member, np.where(known, values, 0.0))
        np.add.at(counts, member, known.astype(np.float64))
        self.means = _ratio(sums.sum(0), counts.sum(0))
        self.draws = np.empty((0, values.shape[1]))
        if len(names) > 1:
            weights = cluster_weights(names.tolist(), draws, seed)
            self.draws = np.concatenate([_ratio(one @ sums, one @ counts) for one in weights])

    def estimate(self, combine: Combine, level: float = LEVEL) -> Estimate:
        """A figure made of the means, with its percentile interval (Efron & Tibshirani 1993, ch. 13)."""
        value = float(combine(self.means))
        if not np.isfinite(value):
            return Estimate(None)
        drawn = combine(self.draws)
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return Estimate(value)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return Estimate(value, float(low), float(high))

    def column(self, index: int) -> Estimate:
        """The mean of one column."""
        return self.estimate(lambda means: means[..., index])

    def difference(self, first: int) -> dict[str, Any]:
        """Of two columns side by side: ``ours``, ``theirs``, their paired ``difference`` and its ``interval``."""
        found = self.estimate(lambda means: means[..., first] - means[..., first + 1])
        return {
            "ours": self.column(first).value,
            "theirs": self.column(first + 1).value,
            "difference": found.value,
            "interval": bounds(found),
        }


def _ratio(sums: Array, counts: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Array = sums / counts
    return result


def number(value: float | bool | None) -> float:
    """A value as a column holds it: NaN for None."""
    return float("nan") if value is None else float(value)


def bounds(estimate: Estimate) -> list[float] | None:
    """``[low, high]`` for a report; None where there is no interval."""
    return None if estimate.low is None or estimate.high is None else [estimate.low, estimate.high]


def shown_difference(one: Mapping[str, Any], digits: int, scale: float = 1) -> str:
    """What :meth:`Resampled.difference` gives, for a table: ours / theirs / the difference and its interval."""
    if one["difference"] is None:
        return "-"
    ours, theirs, difference = (scale * one[name] for name in ("ours", "theirs", "difference"))
    shown = f"{ours:.{digits}f} / {theirs:.{digits}f} / {difference:+.{digits}f}"
    if one["interval"] is None:
        return shown
    low, high = (scale * bound for bound in one["interval"])
    return f"{shown} ({low:+.{digits}f} to {high:+.{digits}f})"
