"""Sampling-rate conversion (soxr, high quality)."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray


def resample(samples: NDArray[np.float32], rate: int, to: int = 16_000) -> NDArray[np.float32]:
    """Convert ``samples`` ``(n,)`` from ``rate`` Hz to ``to`` Hz; float32, about ``n * to / rate`` long.

    Band-limited: nothing above the lower of the two Nyquist frequencies is invented or folded back.
    """
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if rate == to or not len(samples):
        return samples
    return np.asarray(soxr.resample(samples, rate, to, quality="HQ"), dtype=np.float32)
