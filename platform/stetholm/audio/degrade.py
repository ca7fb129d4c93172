"""Degraded spectrograms for mDPO's conditional term: the same recording with some of its evidence gone.

The published recipe: one of a time crop at the start or the end, a masked frequency band, or a crop in both
dimensions, of 10 to 20 %. That the rest keeps its place and that zeros (the 80 dB floor) fill the gap is our reading.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Spectrogram = NDArray[np.float32]


def degrade(
    log_mel: Spectrogram, sample_id: str, epoch: int, strength: tuple[float, float] = (0.1, 0.2)
) -> Spectrogram:
    """A degraded copy of ``log_mel`` ``(bands, frames)``, the same for the same ``(sample_id, epoch)`` everywhere.

    Args:
        log_mel: spectrogram with 0 as its floor, e.g. ``(64, 218)``.
        sample_id: which sample; with ``epoch`` it seeds the choice.
        epoch: so that every epoch sees another degradation.
        strength: least and largest share of the bands or frames to take away.
    """
    digest = hashlib.sha256(f"{sample_id}\n{epoch}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    ways = (_crop_time, _mask_band, _crop_both)
    degraded = np.array(log_mel, dtype=np.float32)
    ways[int(rng.integers(len(ways)))](degraded, float(rng.uniform(*strength)), rng)
    return degraded


def _crop_time(spectrogram: Spectrogram, share: float, rng: np.random.Generator) -> None:
    """Silence the first or the last frames."""
    frames = spectrogram.shape[1]
    width = _part(frames, share)
    start = 0 if rng.random() < 0.5 else frames - width
    spectrogram[:, start : start + width] = 0.0


def _mask_band(spectrogram: Spectrogram, share: float, rng: np.random.Generator) -> None:
    """Silence a run of neighbouring bands anywhere."""
    bands = spectrogram.shape[0]
    height = _part(bands, share)
    start = int(rng.integers(bands - height + 1))
    spectrogram[start : start + height] = 0.0


def _crop_both(spectrogram: Spectrogram, share: float, rng: np.random.Generator) -> None:
    """Keep a rectangle anywhere that is smaller by ``share`` in both dimensions; silence what surrounds it."""
    kept = np.zeros(spectrogram.shape, bool)
    height, width = (size - _part(size, share) for size in spectrogram.shape)
    bottom = int(rng.integers(spectrogram.shape[0] - height + 1))
    left = int(rng.integers(spectrogram.shape[1] - width + 1))
    kept[bottom : bottom + height, left : left + width] = True
    spectrogram[~kept] = 0.0


def _part(size: int, share: float) -> int:
    """``share`` of ``size``, at least 1 and never all of it."""
    return min(max(1, round(share * size)), size - 1)
