"""The log-mel front end against librosa, its bounds, and cropping."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.audio.decode import decode
from stetholm.audio.features import CLIP_SAMPLES, N_FRAMES, N_MELS, SAMPLE_RATE, crop, log_mel
from stetholm.audio.resample import resample

RECORDINGS = Path(__file__).parents[3] / "shared" / "recordings"
TIME = np.arange(CLIP_SAMPLES) / SAMPLE_RATE
RNG = np.random.default_rng(0)


def published(waveform: np.ndarray) -> np.ndarray:
    """The published front end, with librosa."""
    clip = np.zeros(CLIP_SAMPLES, np.float32)
    clip[: min(len(waveform), CLIP_SAMPLES)] = waveform[:CLIP_SAMPLES]
    mel = librosa.feature.melspectrogram(
        y=clip, sr=SAMPLE_RATE, n_fft=1024, hop_length=512, n_mels=64, fmin=50, fmax=8000
    )
    decibels = librosa.power_to_db(mel, ref=np.max)
    low, high = decibels.min(), decibels.max()
    scaled = (decibels - low) / (high - low) if high > low else np.zeros_like(decibels)
    return scaled[:, : int(7 * SAMPLE_RATE / 512)]


@pytest.mark.parametrize(
    "waveform",
    [
        RNG.standard_normal(CLIP_SAMPLES),
        1e-6 * RNG.standard_normal(2 * CLIP_SAMPLES),
        RNG.standard_normal(3_000),
        np.sin(2 * np.pi * 100 * TIME),
        np.sin(2 * np.pi * 7_450 * TIME) + 3e-4 * RNG.standard_normal(CLIP_SAMPLES),
        np.sin(2 * np.pi * 500 * TIME**2),
        np.ones(CLIP_SAMPLES),
        np.eye(1, CLIP_SAMPLES, 50_000)[0],
        np.ones(1),
        np.zeros(CLIP_SAMPLES),
        np.zeros(0),
    ],
    ids=["noise", "faint", "short", "low tone", "tone and noise", "sweep", "flat", "click", "one", "silence", "none"],
)  # fmt: skip
def test_equals_the_published_front_end(waveform: np.ndarray) -> None:
    waveform = waveform.astype(np.float32)
    np.testing.assert_allclose(log_mel(waveform), published(waveform), atol=1e-4)


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no real recordings beside the project")
def test_equals_the_published_front_end_on_real_recordings() -> None:
    for path in sorted(RECORDINGS.glob("*/*.wav"))[::30]:
        sound = decode(path.read_bytes())
        waveform = resample(sound.samples, sound.rate)
        np.testing.assert_allclose(log_mel(waveform), published(waveform), atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2 * CLIP_SAMPLES), st.floats(1e-3, 1e3), st.integers(0, 1_000))
def test_shape_and_bounds(count: int, scale: float, seed: int) -> None:
    image = log_mel((scale * np.random.default_rng(seed).standard_normal(count)).astype(np.float32))
    assert image.shape == (N_MELS, N_FRAMES) and image.dtype == np.float32
    assert np.isfinite(image).all() and image.min() >= 0.0 and image.max() <= 1.0


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 50.0))
def test_gain_makes_no_difference(gain: float) -> None:
    waveform = np.random.default_rng(1).standard_normal(CLIP_SAMPLES).astype(np.float32)
    np.testing.assert_allclose(log_mel(np.float32(gain) * waveform), log_mel(waveform), atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3 * CLIP_SAMPLES), st.none() | st.integers(0, 99))
def test_crop_is_a_stretch_of_the_waveform_or_pads_it(count: int, seed: int | None) -> None:
    waveform = np.arange(1, count + 1, dtype=np.float32)
    clip = crop(waveform, None if seed is None else np.random.default_rng(seed))
    assert clip.shape == (CLIP_SAMPLES,)
    kept = min(count, CLIP_SAMPLES)
    start = int(clip[0]) - 1 if count else 0
    np.testing.assert_array_equal(clip[:kept], waveform[start : start + kept])
    assert not clip[kept:].any() and (seed is not None or start == 0)


def test_random_crops_start_in_different_places() -> None:
    waveform = np.arange(2 * CLIP_SAMPLES, dtype=np.float32)
    rng = np.random.default_rng(0)
    assert len({float(crop(waveform, rng)[0]) for _ in range(8)}) > 4
