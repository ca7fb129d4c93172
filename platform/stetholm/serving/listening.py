"""From a recording's bytes to what the model hears, with the limits of the audio layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stetholm.audio.decode import decode
from stetholm.audio.features import CLIP_SAMPLES, SAMPLE_RATE, log_mel
from stetholm.audio.resample import resample
from stetholm.serving.quality import AudioQuality, measure
from stetholm.settings import AudioSettings


@dataclass(frozen=True)
class Heard:
    """One recording: ``features`` log-mel (64, 218) of its first 7 s, and its quality as a whole."""

    features: np.ndarray
    quality: AudioQuality


def listen(data: bytes, limits: AudioSettings) -> Heard:
    """Decode, measure and transform a recording.

    Raises:
        AudioError: the bytes are no audio, or more than the limits allow.
    """
    sound = decode(data, limits)
    # Half a second more than is kept, so that the resampler's edge lies outside.
    start = sound.samples[: (CLIP_SAMPLES * sound.rate) // SAMPLE_RATE + sound.rate // 2]
    return Heard(log_mel(resample(start, sound.rate, SAMPLE_RATE)), measure(sound.samples, sound.rate))


def stack(heard: list[Heard]) -> np.ndarray:
    """Features of several recordings: (recordings, 64, 218)."""
    return np.stack([one.features for one in heard]) if heard else np.zeros((0, 64, 218), np.float32)
