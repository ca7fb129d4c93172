"""Probes on features: patient-wise, and right where the features are."""

import numpy as np
import pytest

from stetholm.evaluation.probing.linear import FIXED, FOREST, LOGISTIC, Probe, cross_validated, held_out, patient_folds

PATIENTS = [f"p{n // 3}" for n in range(90)]
Y = np.repeat(np.arange(30) % 3, 3)


def features(seed=0):
    """Three classes apart in two of six numbers of very different sizes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(90, 6))
    x[:, 0] += 4 * (Y == 1)
    x[:, 1] += 4 * (Y == 2)
    return (x * [1, 1e-3, 1e3, 1, 1, 1]).astype(np.float32)


@pytest.mark.parametrize("method", [LOGISTIC, FIXED, FOREST])
def test_what_can_be_told_apart_is(method):
    probe = Probe(method, c=(0.01, 1.0), trees=30)
    found = cross_validated(probe, features(), Y, PATIENTS)
    assert found.shape == (90, 3) and np.allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == Y).mean() > 0.9
    test = held_out(probe, features(), Y, PATIENTS, features(seed=1), classes=4)
    assert test.shape == (90, 4) and (test[:, 3] == 0).all() and (test.argmax(axis=1) == Y).mean() > 0.9


def test_a_patient_is_never_on_both_sides_and_everyone_is_judged_once():
    folds = patient_folds(Y, PATIENTS, 5, seed=0)
    who = np.array(PATIENTS)
    assert all(not set(who[fit]) & set(who[judged]) for fit, judged in folds)
    assert sorted(np.concatenate([judged for _, judged in folds]).tolist()) == list(range(90))


def test_what_tells_patients_apart_but_not_classes_is_no_use():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(30, 40))
    x = np.repeat(codes, 3, axis=0).astype(np.float32)
    found = cross_validated(Probe(LOGISTIC, c=(0.01, 1.0)), x, Y, PATIENTS)
    assert (found.argmax(axis=1) == Y).mean() < 0.6
    leaky = held_out(Probe(FIXED), x[::3], Y[::3], PATIENTS[::3], x[1::3], 3)
    assert (leaky.argmax(axis=1) == Y[1::3]).mean() > 0.95


def test_a_class_of_one_patient_is_fitted_without_a_choice_of_c():
    keep = np.flatnonzero((Y < 2) | (np.array(PATIENTS) == "p2"))
    found = held_out(
        Probe(LOGISTIC, c=(1.0,)), features()[keep], Y[keep], [PATIENTS[n] for n in keep], features(seed=1), 3
    )
    assert np.allclose(found.sum(axis=1), 1)
