"""Confidence intervals by the cluster bootstrap: patients are drawn with replacement, each with all that is theirs.

Recordings of one patient are not independent, so drawing single recordings would give intervals that are too narrow.
A draw is a row of weights: how often each observation is in it. A statistic that takes weights is computed for all
draws at once. Interval: percentiles of the draws (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
Statistic = Callable[[Weights], NDArray[np.float64]]
"""Weights (draws, n) -> the statistic of each draw (draws,); NaN where it is not defined."""

DRAWS = 2000
LEVEL = 0.95
_CELLS = 2**22
"""Weights that are in memory together: 32 MiB."""


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval. All three are None where the statistic is not defined.

    ``low`` and ``high`` alone are None where there is one cluster only: nothing is known of how clusters differ.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """``value``, ``low`` and ``high``, rounded."""
        return {key: None if number is None else round(number, 5) for key, number in vars(self).items()}

    def percent(self) -> str:
        """``83.8 (75.0 to 91.2)``, in per cent; a dash where there is nothing."""
        return _shown(self, 100.0, 1)

    def plain(self, digits: int = 3) -> str:
        """The same as it is, with so many digits."""
        return _shown(self, 1.0, digits)


def _shown(estimate: Estimate, scale: float, digits: int) -> str:
    if estimate.value is None:
        return "-"
    value = f"{scale * estimate.value:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({scale * estimate.low:.{digits}f} to {scale * estimate.high:.{digits}f})"


def cluster_weights(clusters: Sequence[Any], draws: int, seed: int) -> Iterator[Weights]:
    """Draws of as many clusters as there are, with replacement, in batches that memory holds.

    Args:
        clusters: (n,) to whom each observation belongs, e.g. patients.
        draws: how many.
        seed: the same seed gives the same draws.

    Yields:
        Weights (some draws, n); together ``draws`` rows.
    """
    names, member = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    rng, count = np.random.default_rng(seed), len(names)
    batch = max(1, _CELLS // max(len(member), 1))
    for start in range(0, draws, batch):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(batch, draws - start))
        yield drawn[:, member].astype(np.float64)


def bootstrap(
    statistic: Statistic, clusters: Sequence[Any], draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> Estimate:
    """A statistic of all observations, with its percentile interval.

    Args:
        statistic: see :data:`Statistic`.
        clusters: (n,) to whom each observation belongs.
        draws: of the bootstrap. Those in which the statistic is not defined (a class is missing) are left out.
        seed: of the draws.
        level: of the interval.
    """
    if not len(clusters):
        return Estimate(None)
    value = float(statistic(np.ones((1, len(clusters))))[0])
    if not np.isfinite(value):
        return Estimate(None)
    if len(set(clusters)) < 2:
        return Estimate(value)
    found = np.concatenate([statistic(weights) for weights in cluster_weights(clusters, draws, seed)])
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def mean_of(values: NDArray[Any]) -> Statistic:
    """The weighted mean of ``values`` (n,) as a statistic; NaN values do not count."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            result: NDArray[np.float64] = (weights @ filled) / (weights @ known)
        return result

    return statistic


def auroc_of(scores: NDArray[Any], positive: NDArray[np.bool_]) -> Statistic:
    """The area under the ROC curve as a statistic: the chance that a positive scores above a negative, ties as half.

    Args:
        scores: (n,).
        positive: (n,).
    """
    _, rank = np.unique(scores, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(rank[order]) > 0])

    def statistic(weights: Weights) -> NDArray[np.float64]:
        ordered = weights[:, order]
        ups = np.add.reduceat(ordered * positive[order], starts, axis=1)
        downs = np.add.reduceat(ordered * ~positive[order], starts, axis=1)
        below = np.cumsum(downs, axis=1) - downs / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            result: NDArray[np.float64] = (ups * below).sum(1) / (ups.sum(1) * downs.sum(1))
        return result

    return statistic


def macro_auroc_of(scores: NDArray[Any], labels: NDArray[np.int64]) -> Statistic:
    """The mean over classes of each one's AUROC against all others, as a statistic; of two classes, the second's.

    Args:
        scores: (n, classes), higher for what is likelier.
        labels: (n,) from 0. A class that no observation has does not count.
    """
    classes = [1] if scores.shape[1] == 2 else sorted(set(labels.tolist()))
    each = [auroc_of(scores[:, name], labels == name) for name in classes]
    return lambda weights: np.mean([one(weights) for one in each], axis=0)
