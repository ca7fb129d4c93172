"""The published audio front end: 7 s at 16 kHz to a log-mel image (64, 218).

Equal to 1e-4 to ``librosa.feature.melspectrogram(sr=16000, n_fft=1024, hop_length=512, n_mels=64, fmin=50,
fmax=8000)``, then ``power_to_db(ref=max)`` and min-max to [0, 1], but without librosa at run time.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
CLIP_SAMPLES = 7 * SAMPLE_RATE
N_MELS = 64
N_FRAMES = 218
CLIP_FRAMES = N_FRAMES + 1
"""Frames of a clip; the published model sees all but the last."""

_N_FFT = 1024
HOP = 512
CLIP_SECONDS = CLIP_SAMPLES / SAMPLE_RATE
FRAME_SECONDS = HOP / SAMPLE_RATE
"""From the centre of one frame to that of the next; the first is centred on the start."""
FMIN, FMAX = 50.0, 8000.0
_FRAMES_AT_ONCE = 32
"""Few enough for the processor's cache, and for memory that the system does not have to hand out anew each time, which
in a fresh process takes as long as the transform itself."""
_AMIN = 1e-10
_TOP_DB = 80.0


def crop(waveform: NDArray[np.float32], rng: np.random.Generator | None = None) -> NDArray[np.float32]:
    """Seven seconds of ``waveform`` (16 kHz) as ``(112000,)``.

    Longer ones are cut, from a random start with ``rng`` (training) or from 0; shorter ones are padded with
    zeros at the end.
    """
    waveform = np.asarray(waveform, dtype=np.float32)
    surplus = len(waveform) - CLIP_SAMPLES
    if surplus < 0:
        return np.pad(waveform, (0, -surplus))
    start = int(rng.integers(surplus + 1)) if rng is not None else 0
    return waveform[start : start + CLIP_SAMPLES]


def log_mel(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-mel spectrogram of ``waveform`` ``(n,)`` at 16 kHz: float32 ``(64, 218)`` in [0, 1].

    Bands run upwards in frequency, frames are 32 ms apart. Decibels are relative to the loudest cell and end
    80 dB below it, so the result does not depend on the gain. The extremes are taken over all 219 frames of
    the clip, of which the published model sees the first 218. A constant spectrogram (silence) gives zeros.
    """
    return normalise(mel_decibels(crop(waveform)))


def mel_decibels(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mel power of ``waveform`` ``(n,)`` at 16 kHz in decibels, not below -100 dB: float32 ``(64, 1 + n // 512)``.

    Frames are centred, 32 ms apart, and hear silence before the beginning and after the end.
    """
    return np.multiply(10.0, np.log10(np.maximum(_AMIN, _mel_power(waveform))), dtype=np.float32)


def normalise(decibels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image that the model sees ``(64, 218)``, from the :func:`mel_decibels` of a clip ``(64, 219)``."""
    high = decibels.max()
    low = max(decibels.min(), high - np.float32(_TOP_DB))
    if high <= low:
        return np.zeros((N_MELS, N_FRAMES), np.float32)
    scaled = (np.maximum(decibels[:, :N_FRAMES], low) - low) / (high - low)
    return np.ascontiguousarray(scaled, dtype=np.float32)


def _mel_power(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    padded = np.pad(waveform, _N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::HOP]
    mel = np.empty((N_MELS, len(frames)), np.float32)
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        # In double precision: quiet bands lie up to 80 dB below the loudest of the same frame.
        spectrum = scipy.fft.rfft(frames[start : start + _FRAMES_AT_ONCE] * _window(), axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        mel[:, start : start + len(power)] = _mel_filters() @ power.T.astype(np.float32)
    return mel


@cache
def _window() -> NDArray[np.float64]:
    """Periodic Hann window."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(_N_FFT) / _N_FFT)


@cache
def _mel_filters() -> NDArray[np.float32]:
    """Triangular filters ``(64, 513)`` of equal area, on Slaney's mel scale (Auditory Toolbox, 1998)."""
    edges = _mel_to_hz(np.linspace(hz_to_mel(FMIN), hz_to_mel(FMAX), N_MELS + 2))
    bins = np.fft.rfftfreq(_N_FFT, 1.0 / SAMPLE_RATE)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * 2.0 / (upper - lower)).astype(np.float32)


_LINEAR_HZ = 200.0 / 3.0  # Hz a mel below 1 kHz
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ
_LOG_STEP = np.log(6.4) / 27.0  # above, 27 mels a factor of 6.4


def hz_to_mel(hz: float) -> float:
    """Slaney's mel scale: linear up to 1 kHz, logarithmic above."""
    return hz / _LINEAR_HZ if hz < _BREAK_HZ else _BREAK_MEL + float(np.log(hz / _BREAK_HZ)) / _LOG_STEP


def _mel_to_hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (mels - _BREAK_MEL))
    return np.where(mels < _BREAK_MEL, mels * _LINEAR_HZ, logarithmic)
