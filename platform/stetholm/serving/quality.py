"""How usable a recording is: numbers that a user can act on (move the microphone, lower the gain)."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from stetholm.audio.features import CLIP_SAMPLES, SAMPLE_RATE

FRAME_SECONDS = 0.05
SILENCE_DBFS = -60.0
"""A frame below this level, relative to full scale, counts as silence (our choice)."""
CLIP_LEVEL = 0.999
"""A sample at or above this part of full scale counts as clipped (our choice)."""
FLOOR_DBFS = -120.0


class AudioQuality(BaseModel):
    """Quality of one recording. Levels in dB relative to full scale."""

    duration_seconds: float
    analysed_seconds: float
    """The model hears this much, from the start."""
    sampling_rate: int
    level_dbfs: float
    clipping_fraction: float
    silence_fraction: float


def level_dbfs(power: np.ndarray) -> np.ndarray:
    """Mean square (full scale 1) to dB, floored at -120."""
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DBFS / 10)))


def measure(samples: np.ndarray, rate: int) -> AudioQuality:
    """Quality of mono ``samples`` (n,), full scale 1.0, at ``rate`` Hz."""
    duration = len(samples) / rate
    frame = max(1, round(rate * FRAME_SECONDS))
    starts = np.arange(0, max(len(samples), 1), frame)
    power = np.square(samples, dtype=np.float64)
    frames = np.add.reduceat(power, starts) / np.diff([*starts, len(samples)]) if len(samples) else np.zeros(1)
    return AudioQuality(
        duration_seconds=round(duration, 3),
        analysed_seconds=round(min(duration, CLIP_SAMPLES / SAMPLE_RATE), 3),
        sampling_rate=rate,
        level_dbfs=round(float(level_dbfs(np.asarray(power.mean() if len(samples) else 0.0))), 1),
        clipping_fraction=round(float(np.mean(np.abs(samples) >= CLIP_LEVEL)) if len(samples) else 0.0, 4),
        silence_fraction=round(float(np.mean(level_dbfs(frames) < SILENCE_DBFS)), 4),
    )
