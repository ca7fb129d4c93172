"""A recording as the model hears it, and the same with some of its seconds gone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stetholm.audio.decode import AudioError
from stetholm.audio.features import CLIP_SECONDS, FRAME_SECONDS, N_FRAMES, N_MELS, SAMPLE_RATE, log_mel
from stetholm.model.sound import read_waveform

FLOOR = 0.0
"""What replaces occluded frames: the clip's own floor, which is how the front end shows silence.

It shows the padding of a recording shorter than 7 s so, and mDPO's degraded recordings, so the encoder has heard such
frames in training. The mean of the clip, or noise, would be a sound of its own."""


@dataclass(frozen=True, eq=False)
class Clip:
    """The first 7 s of a recording.

    Attributes:
        log_mel: (64, 218) in [0, 1].
        seconds: how much of it is sound, at most 7; the rest is padding.
    """

    log_mel: NDArray[np.float32]
    seconds: float

    def __post_init__(self) -> None:
        if self.log_mel.shape != (N_MELS, N_FRAMES) or not np.isfinite(self.log_mel).all():
            raise AudioError(f"a clip must be a finite log-mel ({N_MELS}, {N_FRAMES}), not {self.log_mel.shape}")
        if not self.seconds > 0:
            raise AudioError(f"a clip must have some seconds of sound, not {self.seconds}")
        object.__setattr__(self, "seconds", min(float(self.seconds), CLIP_SECONDS))

    @classmethod
    def of(cls, recording: Any, sampling_rate: int | None = None) -> Clip:
        """A clip as it is; else of a waveform (n,) with its rate, a path, or the bytes of an audio file.

        Raises:
            AudioError: it cannot be used.
        """
        if isinstance(recording, Clip):
            return recording
        waveform = read_waveform(recording, sampling_rate)
        return cls(log_mel(waveform), len(waveform) / SAMPLE_RATE)

    @property
    def frames(self) -> int:
        """Frames that are sound: those centred before its end."""
        return min(N_FRAMES, max(1, frames_between(0.0, self.seconds).stop))

    def without(self, start: float, stop: float) -> NDArray[np.float32]:
        """The log-mel with the frames centred in [start, stop) seconds at the floor."""
        occluded = self.log_mel.copy()
        occluded[:, frames_between(start, stop)] = FLOOR
        return occluded


def frames_between(start: float, stop: float) -> slice:
    """The frames centred in [start, stop) seconds."""
    # Rounded, since e.g. 0.096 / 0.032 is a little over 3.
    first, last = (math.ceil(round(second / FRAME_SECONDS, 6)) for second in (start, stop))
    return slice(max(first, 0), max(last, 0))


def check_windows(length: float, hop: float) -> None:
    """Refuse windows that leave gaps between them or hold less than two frames.

    Raises:
        ValueError: they do.
    """
    if not length >= 2 * FRAME_SECONDS or not 0 < hop <= length:
        raise ValueError(
            f"windows of {length:g} s every {hop:g} s: give a hop above 0 and not above the window, "
            f"and a window of {2 * FRAME_SECONDS:g} s or more"
        )


def windows(seconds: float, length: float, hop: float) -> list[tuple[float, float]]:
    """Windows of ``length`` seconds, ``hop`` apart from 0, that together cover ``seconds``; the last ends with them.

    All are equally long, so that their evidence can be compared; a recording shorter than ``length`` is one window.
    """
    if seconds <= length:
        return [(0.0, seconds)]
    starts = [number * hop for number in range(math.ceil(round((seconds - length) / hop, 6)))]
    return [(start, start + length) for start in [*starts, seconds - length]]
