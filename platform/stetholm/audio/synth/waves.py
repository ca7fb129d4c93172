"""What every synthesised recording is made of: timed events, short waves and where they are put."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stetholm.audio.event import Event

Wave = NDArray[np.float64]


@dataclass(frozen=True)
class Synthetic:
    """A synthesised recording: float32 ``(n,)`` within [-1, 1] at ``rate`` Hz, and its events by start."""

    samples: NDArray[np.float32]
    rate: int
    events: tuple[Event, ...]


class Track:
    """A stretch of sound under construction: a buffer, and the events put into it."""

    def __init__(self, seconds: float, rate: int) -> None:
        self.seconds = seconds
        self.rate = rate
        self.samples: Wave = np.zeros(round(seconds * rate))
        self.events: list[Event] = []

    def add(self, at: float, wave: Wave) -> None:
        """Add ``wave`` from second ``at``; what lies outside of the track is cut off."""
        start = round(at * self.rate)
        first, last = max(start, 0), min(start + len(wave), len(self.samples))
        if first < last:
            self.samples[first:last] += wave[first - start : last - start]

    def mark(self, start: float, end: float, label: str) -> None:
        """Record an event, clipped to the track; nothing if it lies outside."""
        start, end = max(start, 0.0), min(end, self.seconds)
        if start < end:
            self.events.append(Event(start, end, label))

    def sorted_events(self) -> tuple[Event, ...]:
        """All events, by start."""
        return tuple(sorted(self.events, key=lambda event: (event.start, event.end, event.label)))


def thump(rate: int, seconds: float, high: float, low: float, phase: float = 0.0) -> Wave:
    """A valve sound: a tone gliding from ``high`` to ``low`` Hz that rises fast and dies away; peak about 1.

    The falling chirp follows the model of A2 and P2 by Xu, Durand & Pibarot, IEEE Trans Biomed Eng 47 (2000).
    """
    time = np.arange(round(seconds * rate)) / rate
    decay = seconds / 6.0
    envelope = (time / decay) * np.exp(1.0 - time / decay)
    glide = low * time + (high - low) * (seconds / 3.0) * (1.0 - np.exp(-3.0 * time / seconds))
    return envelope * np.sin(2.0 * np.pi * glide + phase)


def crackle(rate: int, two_cycles: float) -> Wave:
    """A crackle whose first two cycles last ``two_cycles`` seconds (2CD): peak about 1.

    Explosive onset, then ever wider deflections, as in the time-expanded waveforms of Murphy, Holford & Knowler,
    N Engl J Med 296 (1977).
    """
    part = np.arange(1, max(2, round(two_cycles * rate))) / (two_cycles * rate)
    envelope = 0.5 * (1.0 + np.cos(2.0 * np.pi * (np.sqrt(part) - 0.5)))
    return envelope * np.sin(4.0 * np.pi * part**0.6)


def tone(rate: int, seconds: float, frequency: float, glide: float, harmonics: tuple[float, ...], phase: float) -> Wave:
    """A gliding harmonic tone with 30 ms ramps: RMS about 1 between them.

    Args:
        rate: sampling rate in Hz.
        seconds: duration.
        frequency: fundamental at the start, in Hz.
        glide: relative change of the fundamental until the end.
        harmonics: amplitudes of the fundamental and its multiples; those above Nyquist are left out.
        phase: of the fundamental, in radians.
    """
    time = np.arange(round(seconds * rate)) / rate
    angle = 2.0 * np.pi * frequency * (time + glide * time**2 / (2.0 * seconds)) + phase
    top = frequency * max(1.0, 1.0 + glide)
    orders = [k for k in range(1, len(harmonics) + 1) if k * top < 0.45 * rate]
    wave = sum((harmonics[k - 1] * np.sin(k * angle) for k in orders), np.zeros(len(time)))
    ramp = np.clip(np.minimum(time, seconds - time) / 0.03, 0.0, 1.0)
    return wave * np.sin(0.5 * np.pi * ramp) ** 2 / np.sqrt(0.5 * sum(a * a for a in harmonics))
