"""Stethoscopes: what they pass, what they add, and the rate they record at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from stetholm.audio.synth.noise import Gain, band, coloured
from stetholm.audio.synth.waves import Wave


@dataclass(frozen=True)
class Device:
    """A recording device.

    Attributes:
        name: as written in the corpus.
        heart_rate: sampling rate for heart sounds, Hz.
        lung_rate: sampling rate for lung sounds, Hz.
        low: lower corner of its pass band, Hz.
        high: upper corner, Hz.
        resonance: centre of the chest piece's resonance, Hz.
        boost: gain at the resonance (amplitude, 1 = none).
        self_noise: RMS of its electronics relative to the recording's RMS.
    """

    name: str
    heart_rate: int
    lung_rate: int
    low: float
    high: float
    resonance: float
    boost: float
    self_noise: float

    def gain(self, frequencies: Wave) -> Wave:
        """Amplitude response: band pass with one resonance (in octaves, about 1 wide)."""
        octaves = np.log2(np.maximum(frequencies, 1.0) / self.resonance)
        return band(self.low, self.high)(frequencies) * (1.0 + (self.boost - 1.0) * np.exp(-(octaves**2) / 0.5))


DEVICES = (
    Device("electronic diaphragm", 4_000, 8_000, 25.0, 1_800.0, 180.0, 1.5, 0.004),
    Device("electronic bell", 4_000, 8_000, 15.0, 1_200.0, 90.0, 1.8, 0.004),
    Device("contact microphone", 8_000, 16_000, 30.0, 3_000.0, 400.0, 1.3, 0.002),
    Device("wireless chest piece", 8_000, 16_000, 35.0, 2_200.0, 250.0, 1.6, 0.008),
)
"""Four kinds, not models of products. Chest pieces differ mainly in their low-frequency response and in
resonances (Abella, Formolo & Penney, J Acoust Soc Am 91, 1992, on acoustic stethoscopes)."""


def record(wave: Wave, device: Device, rate: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """``wave`` as ``device`` writes it: filtered, with its own noise, at a random gain below full scale."""
    heard = apply_gain(wave, rate, device.gain)
    level = float(np.sqrt(np.mean(heard**2)))
    heard = heard + device.self_noise * level * coloured(rng, len(heard), rate, np.ones_like)
    peak = max(float(np.abs(heard).max()), 1e-12)
    return (heard * (rng.uniform(0.25, 0.95) / peak)).astype(np.float32)


def apply_gain(wave: Wave, rate: int, gain: Gain) -> Wave:
    """Filter ``wave`` with the zero-phase amplitude response ``gain``."""
    size = scipy.fft.next_fast_len(len(wave), real=True)
    spectrum = scipy.fft.rfft(wave, size) * gain(scipy.fft.rfftfreq(size, 1.0 / rate))
    return scipy.fft.irfft(spectrum, size)[: len(wave)]
