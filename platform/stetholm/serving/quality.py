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
_BLOCK_FRAMES = 256


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
    powers, clipped = _scan(samples, max(1, round(rate * FRAME_SECONDS)))
    frames = np.concatenate([power / count for power, count in powers]) if powers else np.zeros(1)
    total = sum(float(power.sum()) for power, _ in powers)
    return AudioQuality(
        duration_seconds=round(duration, 3),
        analysed_seconds=round(min(duration, CLIP_SAMPLES / SAMPLE_RATE), 3),
        sampling_rate=rate,
        level_dbfs=round(float(level_dbfs(np.asarray(total / max(1, len(samples))))), 1),
        clipping_fraction=round(clipped / max(1, len(samples)), 4),
        silence_fraction=round(float(np.mean(level_dbfs(frames) < SILENCE_DBFS)), 4),
    )


def _scan(samples: np.ndarray, frame: int) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """Sums of squares and lengths of the frames, and the number of clipped samples.

    Block by block: a long recording would take three times its own size otherwise.
    """
    powers, clipped = [], 0
    for begin in range(0, len(samples), frame * _BLOCK_FRAMES):
        block = samples[begin : begin + frame * _BLOCK_FRAMES]
        starts = np.arange(0, len(block), frame)
        sums = np.add.reduceat(np.square(block, dtype=np.float64), starts)
        powers.append((sums, np.diff([*starts, len(block)])))
        clipped += int(np.count_nonzero(np.abs(block) >= CLIP_LEVEL))
    return powers, clipped
