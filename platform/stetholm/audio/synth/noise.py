"""Coloured noise, and the disturbances of a real recording: the room, mains hum, rubbing on the skin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.fft

from stetholm.audio.synth.waves import Track, Wave

Gain = Callable[[Wave], Wave]
"""Amplitude by frequency in Hz."""


def coloured(rng: np.random.Generator, count: int, rate: int, gain: Gain) -> Wave:
    """Gaussian noise ``(count,)`` of unit RMS whose amplitude spectrum follows ``gain``."""
    size = scipy.fft.next_fast_len(count, real=True)
    frequencies = scipy.fft.rfftfreq(size, 1.0 / rate)
    parts = rng.standard_normal((2, len(frequencies)))
    noise = scipy.fft.irfft(gain(frequencies) * (parts[0] + 1j * parts[1]), size)[:count]
    return noise / max(rms(noise), 1e-12)


def band(low: float, high: float, order: int = 2) -> Gain:
    """Gain of a band pass with Butterworth flanks of ``order`` (6 dB an octave each)."""

    def gain(frequencies: Wave) -> Wave:
        safe = np.maximum(frequencies, 1e-3)
        return 1.0 / np.sqrt((1.0 + (low / safe) ** (2 * order)) * (1.0 + (safe / high) ** (2 * order)))

    return gain


def falling(corner: float, slope: float, low: float = 40.0) -> Gain:
    """Gain that is flat up to ``corner`` Hz and then falls as ``1 / f**slope``; cut below ``low`` Hz."""

    def gain(frequencies: Wave) -> Wave:
        safe = np.maximum(frequencies, 1e-3)
        return (1.0 + (safe / corner) ** 2) ** (-slope / 2.0) / np.sqrt(1.0 + (low / safe) ** 4)

    return gain


def rms(wave: Wave) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(wave)))) if len(wave) else 0.0


def room(rng: np.random.Generator, count: int, rate: int) -> Wave:
    """Ambient noise of unit RMS: pink, with mains hum in one recording of five."""
    noise = coloured(rng, count, rate, falling(60.0, 1.0))
    if rng.random() < 0.2:
        mains = rng.choice([50.0, 60.0])
        angle = 2.0 * np.pi * mains * np.arange(count) / rate + rng.uniform(0, 2 * np.pi)
        noise += rng.uniform(0.2, 0.8) * (np.sin(angle) + 0.4 * np.sin(2 * angle) + 0.2 * np.sin(3 * angle))
    return noise / rms(noise)


def add_rubbing(track: Track, rng: np.random.Generator, level: float, chance: float = 0.25) -> None:
    """With probability ``chance`` one or two low-frequency bursts of a moving chest piece, RMS ``level``."""
    if rng.random() >= chance:
        return
    for _ in range(int(rng.integers(1, 3))):
        seconds = rng.uniform(0.1, 0.4)
        start = rng.uniform(0.0, track.seconds)
        burst = coloured(rng, round(seconds * track.rate), track.rate, falling(120.0, 1.5, low=30.0))
        track.add(start, level * burst * np.hanning(len(burst)))
        track.mark(start, start + seconds, "rubbing")
