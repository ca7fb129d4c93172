"""Probes: simple classifiers on frozen features, fitted and judged patient-wise.

The logistic regression standardises the features and chooses its penalty by patient-wise folds within what it is fitted
on, so that nothing of the judged recordings enters the choice. All of it is scikit-learn's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Labels = NDArray[np.int64]
Matrix = NDArray[np.float32]
Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]

LOGISTIC, FIXED, FOREST = "logistic regression", "logistic regression, C = 1", "random forest"
_STEPS = 2000


@dataclass(frozen=True)
class Probe:
    """How features are judged.

    Attributes:
        method: :data:`LOGISTIC` (C chosen), :data:`FIXED` or :data:`FOREST`.
        c: what C is chosen from.
        folds: of the cross-validation.
        inner_folds: by which C is chosen.
        trees: of the forest.
        seed: of folds and forest.
    """

    method: str
    c: tuple[float, ...] = (1.0,)
    folds: int = 5
    inner_folds: int = 3
    trees: int = 500
    seed: int = 0


def cross_validated(probe: Probe, x: Matrix, y: Labels, patients: Sequence[str]) -> NDArray[np.float64]:
    """Probabilities (n, classes) of each recording, by a probe that has seen no recording of its patient.

    Args:
        probe: which.
        x: (n, width).
        y: (n,) from 0.
        patients: (n,).
    """
    found = np.zeros((len(y), int(y.max()) + 1))
    for fit, judged in patient_folds(y, patients, probe.folds, probe.seed):
        found[judged] = held_out(probe, x[fit], y[fit], [patients[n] for n in fit], x[judged], found.shape[1])
    return found


def held_out(
    probe: Probe, x: Matrix, y: Labels, patients: Sequence[str], judged: Matrix, classes: int
) -> NDArray[np.float64]:
    """Probabilities (m, classes) of ``judged`` (m, width) by a probe fitted on the rest; 0 for a class unseen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the weakest penalties, which then lose the choice
        fitted = _estimator(probe, y, patients).fit(x.astype(np.float64), y)
    found = np.zeros((len(judged), classes))
    if len(judged):
        found[:, fitted.classes_] = fitted.predict_proba(judged.astype(np.float64))
    return found


@dataclass(frozen=True, eq=False)
class Fit:
    """A piece of work: a probe, what it is fitted on and what it judges.

    Attributes:
        probe: which.
        x: (n, width).
        y: (n,) from 0.
        patients: (n,).
        classes: how many there are.
        parts: places of what is fitted on and of what is judged; None: cross-validation of all.
    """

    probe: Probe
    x: Matrix
    y: Labels
    patients: Sequence[str]
    classes: int
    parts: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def judge(self) -> NDArray[np.float64]:
        """Probabilities of what is judged, in order."""
        if self.parts is None:
            return cross_validated(self.probe, self.x, self.y, self.patients)
        fit, judged = self.parts
        who = [self.patients[place] for place in fit]
        return held_out(self.probe, self.x[fit], self.y[fit], who, self.x[judged], self.classes)


def judge(fit: Fit) -> NDArray[np.float64]:
    """:meth:`Fit.judge`, as a Ray task: it needs this light module and no other, so that a worker is soon ready."""
    return fit.judge()


def patient_folds(y: Labels, patients: Sequence[str], folds: int, seed: int) -> Folds:
    """Stratified folds none of which shares a patient with another; as (fitted on, judged)."""
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(y)), y, groups=np.array(patients)))


def _estimator(probe: Probe, y: Labels, patients: Sequence[str]) -> Any:
    if probe.method == FOREST:
        return RandomForestClassifier(probe.trees, random_state=probe.seed, n_jobs=1)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_STEPS))
    folds = [] if probe.method == FIXED else _inner_folds(probe, y, patients)
    if not folds:
        return regression
    scorer = make_scorer(log_loss, response_method="predict_proba", greater_is_better=False, labels=np.unique(y))
    return GridSearchCV(regression, {"logisticregression__C": list(probe.c)}, scoring=scorer, cv=folds)


def _inner_folds(probe: Probe, y: Labels, patients: Sequence[str]) -> Folds:
    """Folds by which C is chosen; none where the classes have too few patients, and C is then 1."""
    who = np.array(patients)
    fewest = min(len(set(who[y == label])) for label in np.unique(y))
    count = min(probe.inner_folds, fewest)
    if count < 2:
        return []
    whole = set(y.tolist())
    return [(fit, out) for fit, out in patient_folds(y, patients, count, probe.seed) if set(y[fit].tolist()) == whole]
