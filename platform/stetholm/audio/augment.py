"""Training augmentation of waveforms at 16 kHz.

The default recipe keeps the label: what it changes is what differs between two recordings of the same chest. The
published recipe puts every clip through one of +5 dB, peak normalisation, a 300 Hz low pass or a 3 kHz high pass.
Its low pass takes away wheezes and most of a murmur, its high pass nearly all of a heart sound, while the answer
still names them; so it is offered for comparison, and is not the default. (The log-mel front end is blind to gain
and polarity; they are for encoders that are not.)
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from stetholm.audio.features import SAMPLE_RATE
from stetholm.settings import Augmentation

Waveform = NDArray[np.float32]


def augment(waveform: Waveform, rng: np.random.Generator, recipe: Augmentation = "label-keeping") -> Waveform:
    """An augmented copy of ``waveform`` ``(n,)`` at 16 kHz: float32, same length.

    Args:
        waveform: finite samples; silence stays silence.
        rng: all randomness.
        recipe: ``label-keeping``: a circular shift in time; in half of the clips the spectrum tilted by up to
            1.5 dB an octave, as devices differ; in half of them white noise 20 to 40 dB below the signal; a gain
            of up to 6 dB either way; either polarity. ``published``: see the module. ``none``: nothing.
    """
    waveform = np.array(waveform, dtype=np.float32)
    if recipe == "none" or not waveform.any():
        return waveform
    return _keep_label(waveform, rng) if recipe == "label-keeping" else _published(waveform, rng)


def _keep_label(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    waveform = np.roll(waveform, int(rng.integers(len(waveform))))
    if rng.random() < 0.5:
        waveform = _tilt(waveform, float(rng.uniform(-1.5, 1.5)))
    if rng.random() < 0.5:
        waveform = _add_noise(waveform, float(rng.uniform(20.0, 40.0)), rng)
    gain = rng.choice((-1.0, 1.0)) * 10.0 ** (rng.uniform(-6.0, 6.0) / 20.0)
    return (gain * waveform).astype(np.float32)


def _published(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    way = int(rng.integers(4))
    if way == 0:
        return (waveform * 10.0 ** (5.0 / 20.0)).astype(np.float32)
    if way == 1:
        return (waveform / np.abs(waveform).max()).astype(np.float32)
    frequencies, spectrum = _spectrum(waveform)
    # First-order slopes; the public record does not say which filter.
    gain = 1.0 / np.sqrt(1.0 + (frequencies / 300.0) ** 2)
    if way == 3:
        gain = 1.0 / np.sqrt(1.0 + (3000.0 / np.maximum(frequencies, 1e-3)) ** 2)
    return _waveform(spectrum * gain, len(waveform))


def _tilt(waveform: Waveform, decibels: float) -> Waveform:
    """Change the spectrum by ``decibels`` an octave about 300 Hz, between 50 Hz and 4 kHz."""
    frequencies, spectrum = _spectrum(waveform)
    octaves = np.log2(np.clip(frequencies, 50.0, 4000.0) / 300.0)
    return _waveform(spectrum * 10.0 ** (decibels * octaves / 20.0), len(waveform))


def _add_noise(waveform: Waveform, snr: float, rng: np.random.Generator) -> Waveform:
    """Add white noise ``snr`` dB below the RMS of ``waveform``."""
    level = np.sqrt(np.mean(np.square(waveform))) * 10.0 ** (-snr / 20.0)
    return waveform + np.float32(level) * rng.standard_normal(len(waveform), dtype=np.float32)


def _spectrum(waveform: Waveform) -> tuple[NDArray[np.float32], NDArray[np.complex64]]:
    """Frequencies in Hz and real FFT, padded to a fast length."""
    size = scipy.fft.next_fast_len(len(waveform), real=True)
    return scipy.fft.rfftfreq(size, 1.0 / SAMPLE_RATE).astype(np.float32), scipy.fft.rfft(waveform, size)


def _waveform(spectrum: NDArray[np.complex64], count: int) -> Waveform:
    size = scipy.fft.next_fast_len(count, real=True)
    return scipy.fft.irfft(spectrum, size)[:count].astype(np.float32)
