"""Augmentation keeps shape and label-bearing content, and follows its generator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.audio.augment import augment
from stetholm.settings import Augmentation

RECIPES: tuple[Augmentation, ...] = ("label-keeping", "published")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5_000), st.integers(0, 10_000), st.sampled_from(RECIPES))
def test_shape_type_and_finiteness(count: int, seed: int, recipe: Augmentation) -> None:
    waveform = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    before = waveform.copy()
    out = augment(waveform, np.random.default_rng(seed), recipe)
    assert out.shape == waveform.shape and out.dtype == np.float32 and np.isfinite(out).all()
    np.testing.assert_array_equal(waveform, before)
    np.testing.assert_array_equal(out, augment(waveform, np.random.default_rng(seed), recipe))


@pytest.mark.parametrize("recipe", RECIPES)
def test_silence_stays_silence(recipe: Augmentation) -> None:
    assert not augment(np.zeros(1_000, np.float32), np.random.default_rng(0), recipe).any()


def band_power(waveform: np.ndarray, low: float, high: float) -> float:
    power = np.abs(np.fft.rfft(waveform)) ** 2
    frequencies = np.fft.rfftfreq(len(waveform), 1 / 16_000)
    return float(power[(frequencies >= low) & (frequencies < high)].sum() / power.sum())


@pytest.mark.parametrize(("low", "high"), [(50, 150), (400, 900)], ids=["heart sounds", "wheezes"])
def test_the_default_keeps_the_bands_that_carry_labels(low: float, high: float) -> None:
    frequencies = np.fft.rfftfreq(32_000, 1 / 16_000)
    rng = np.random.default_rng(0)
    spectrum = np.where(frequencies < 1_500, 1.0, 0.0) * np.exp(2j * np.pi * rng.random(len(frequencies)))
    waveform = np.fft.irfft(spectrum).astype(np.float32)
    share = band_power(waveform, low, high)
    for seed in range(20):
        assert band_power(augment(waveform, np.random.default_rng(seed)), low, high) > 0.3 * share
