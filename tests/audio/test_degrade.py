"""Degradation: seeded, within the published strength, only takes away."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stetholm.audio.degrade import degrade

IMAGE = np.random.default_rng(0).uniform(0.1, 1.0, (64, 218)).astype(np.float32)


@given(st.text(max_size=20), st.integers(0, 50))
def test_it_only_silences_and_by_the_strength_asked(sample_id: str, epoch: int) -> None:
    before = IMAGE.copy()
    degraded = degrade(IMAGE, sample_id, epoch)
    np.testing.assert_array_equal(IMAGE, before)
    gone = degraded == 0
    assert degraded.shape == IMAGE.shape and degraded.dtype == np.float32
    np.testing.assert_array_equal(degraded[~gone], IMAGE[~gone])
    rows, columns = gone.all(axis=1).mean(), gone.all(axis=0).mean()
    assert 0.09 <= max(rows, columns) <= 0.21 and min(rows, columns) <= 0.21


@given(st.text(max_size=20), st.integers(0, 50))
def test_the_same_sample_and_epoch_give_the_same(sample_id: str, epoch: int) -> None:
    np.testing.assert_array_equal(degrade(IMAGE, sample_id, epoch), degrade(IMAGE, sample_id, epoch))


def test_samples_and_epochs_differ_and_all_three_ways_occur() -> None:
    kinds = set()
    for index in range(40):
        gone = degrade(IMAGE, f"sample-{index}", 0) == 0
        kinds.add((bool(gone.all(axis=1).any()), bool(gone.all(axis=0).any())))
    assert kinds == {(False, True), (True, False), (True, True)}
    assert len({degrade(IMAGE, "sample", epoch).tobytes() for epoch in range(10)}) > 5


@given(st.floats(0.0, 1.0), st.integers(2, 9), st.integers(2, 9))
def test_any_size_and_strength_leaves_something(strength: float, bands: int, frames: int) -> None:
    degraded = degrade(np.ones((bands, frames), np.float32), "x", 0, (strength, strength))
    assert 0 < degraded.sum() < bands * frames
