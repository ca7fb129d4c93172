"""Intervals over patients, and the figures they are of."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from stetholm.evaluation.bootstrap import auroc_of, bootstrap, cluster_weights, macro_auroc_of, mean_of

SCORED = st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 3)), min_size=4, max_size=40)


@given(SCORED)
def test_a_weighted_auroc_is_that_of_repeated_observations(rows):
    scores, positive, weights = (np.array(column) for column in zip(*rows, strict=True))
    repeated = np.repeat(np.arange(len(rows)), weights)
    assume(len(set(positive[repeated].tolist())) == 2)
    ours = auroc_of(scores, positive)(weights[None].astype(float))[0]
    assert ours == pytest.approx(roc_auc_score(positive[repeated], scores[repeated]))


@given(SCORED)
def test_an_auroc_without_both_classes_is_none(rows):
    scores = np.array([score for score, _, _ in rows], float)
    assert bootstrap(auroc_of(scores, np.ones(len(rows), bool)), list(range(len(rows))), 100).value is None


def test_of_several_classes_the_auroc_is_the_mean_against_the_others():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((60, 3)), rng.integers(0, 3, 60)
    scores /= scores.sum(axis=1, keepdims=True)
    ours = macro_auroc_of(scores, labels)(np.ones((1, 60)))[0]
    assert ours == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr"))
    two = macro_auroc_of(scores[:, :2], labels % 2)(np.ones((1, 60)))[0]
    assert two == pytest.approx(roc_auc_score(labels % 2, scores[:, 1]))


def test_patients_are_drawn_whole():
    patients = ["a", "a", "b", "c", "c", "c"]
    weights = np.concatenate(list(cluster_weights(patients, 300, seed=1)))
    assert weights.shape == (300, 6)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all() and weights.mean() == pytest.approx(1.0, abs=0.05)


def test_alike_recordings_of_one_patient_add_no_certainty():
    values = np.repeat(np.random.default_rng(0).integers(0, 2, 20), 10).astype(float)
    by_patient = bootstrap(mean_of(values), np.repeat(np.arange(20), 10).tolist())
    by_recording = bootstrap(mean_of(values), list(range(200)))
    assert by_patient.value == by_recording.value == values.mean()
    assert by_patient.low < by_recording.low < values.mean() < by_recording.high < by_patient.high
    alone = bootstrap(mean_of(np.repeat(values[::10], 1)), list(range(20)))
    assert (by_patient.low, by_patient.high) == (alone.low, alone.high)


def test_the_same_seed_gives_the_same_interval_and_too_little_gives_none():
    values = np.array([0.0, 1.0, np.nan, 1.0])
    patients = ["a", "b", "c", "d"]
    assert bootstrap(mean_of(values), patients, seed=3) == bootstrap(mean_of(values), patients, seed=3)
    assert bootstrap(mean_of(values), patients).value == pytest.approx(2 / 3)
    one = bootstrap(mean_of(values), ["a"] * 4)
    assert one.low is None and one.percent() == "66.7"
    assert bootstrap(mean_of(values[:0]), []).plain() == "-"
    assert bootstrap(mean_of(np.ones(3)), ["a", "b", "c"]).percent() == "100.0 (100.0 to 100.0)"
