"""One recording, as a user hands it over, to its log-mel spectrogram."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stetholm.audio.decode import AudioError, decode
from stetholm.audio.features import SAMPLE_RATE, log_mel
from stetholm.audio.resample import resample
from stetholm.settings import AudioSettings


def clip_features(recording: Any, rate: int | None) -> NDArray[np.float32]:
    """Log-mel (64, 218) of the first 7 s of a recording; arguments and errors as :func:`read_waveform`."""
    return log_mel(read_waveform(recording, rate))


def read_waveform(
    recording: Any,
    rate: int | None,
    limits: AudioSettings = AudioSettings(),  # noqa: B008 (immutable)
) -> NDArray[np.float32]:
    """The whole recording at 16 kHz (n,): of a waveform (n,), a path or encoded bytes.

    Args:
        recording: what the processor was given.
        rate: sampling rate in Hz of a waveform; None for paths and bytes, whose files know it.
        limits: of what is decoded.

    Raises:
        AudioError: unreadable, of another shape, not finite, or a waveform without a rate.
    """
    if isinstance(recording, (str, os.PathLike)):
        path = Path(recording)
        if not path.is_file():
            raise AudioError(f"no recording at {path}")
        recording = path.read_bytes()
    if isinstance(recording, (bytes, bytearray, memoryview)):
        sound = decode(bytes(recording), limits)
        return resample(sound.samples, sound.rate)
    return resample(_checked(recording), _checked_rate(rate))


def _checked(waveform: Any) -> NDArray[np.float32]:
    samples = np.asarray(waveform, dtype=np.float32)
    if samples.ndim != 1 or not len(samples):
        raise AudioError(
            f"a waveform must be one-dimensional and not empty, not of shape {samples.shape}: "
            "average the channels, or give each as a recording of its own"
        )
    if not np.isfinite(samples).all():
        raise AudioError("a waveform has samples that are not finite (NaN or infinity): mend the recording")
    return samples


def _checked_rate(rate: int | None) -> int:
    if rate is None or not 1_000 <= rate <= 192_000:
        raise AudioError(f"waveforms need sampling_rate, 1000 to 192000 Hz (log-mel uses {SAMPLE_RATE}), not {rate}")
    return int(rate)
