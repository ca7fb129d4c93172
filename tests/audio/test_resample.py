"""Resampling keeps tones, length and type."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.audio.resample import resample


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 44_100, 48_000])
def test_a_tone_stays_where_it_is(rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate).astype(np.float32)
    out = resample(tone, rate)
    expected = np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
    assert out.dtype == np.float32 and abs(len(out) - 32_000) <= 1
    np.testing.assert_allclose(out[2_000:-2_000], expected[2_000 : len(out) - 2_000], atol=2e-3)


def test_what_lies_above_the_new_nyquist_is_removed() -> None:
    tone = np.sin(2 * np.pi * 12_000 * np.arange(44_100) / 44_100).astype(np.float32)
    assert np.abs(resample(tone, 44_100)[1_000:-1_000]).max() < 1e-3


def test_same_rate_changes_nothing() -> None:
    samples = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    np.testing.assert_array_equal(resample(samples, 16_000), samples)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3_000), st.integers(1_000, 96_000))
def test_length_follows_the_ratio(count: int, rate: int) -> None:
    out = resample(np.ones(count, np.float32), rate)
    assert abs(len(out) - count * 16_000 / rate) <= 2 and np.isfinite(out).all()
