"""What ingest computes once from each recording, so that no epoch does it again: a training copy and spectrograms.

The training copy is the recording at 16 kHz, scaled to full scale (the front end is blind to gain) and kept as 16-bit
FLAC: of chest sounds a quarter of the size of PCM. Its features differ by up to 0.02 from the recording's own where
these hang on their quietest cell. Only augmentation of waveforms needs it.

The log-mel is that of the first 7 s, before any rounding of the copy, in 16-bit fixed point: exact to 8e-6. Of a
recording that is longer there are also the decibels of its whole length, in 16-bit fixed point between its quietest
and its loudest cell, frame after frame: a crop that starts on a frame (they are 32 ms apart) is a piece of them,
normalised. Such a crop equals the log-mel of its waveform, but for its first and last frame, which hear what lies
before and after it rather than silence, and for the extremes if they fall on these.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from stetholm.audio.decode import AudioError, Sound, encode_flac
from stetholm.audio.features import (
    CLIP_FRAMES,
    CLIP_SAMPLES,
    CLIP_SECONDS,
    N_FRAMES,
    N_MELS,
    SAMPLE_RATE,
    crop,
    log_mel,
    mel_decibels,
    normalise,
)
from stetholm.audio.resample import resample

_STEPS = 2**16 - 1
_ENDS_BYTES = 8


class Derived(NamedTuple):
    """Columns of a shard that follow from a recording."""

    audio_16khz: bytes
    log_mel: bytes
    decibels: bytes
    """Empty where the recording is not longer than a clip."""


def longer_than_clip(seconds: float) -> bool:
    """Whether a recording of this length (in float32, as shards keep it) has more than one crop."""
    return bool(np.float32(seconds) > CLIP_SECONDS)


def derive(sound: Sound) -> Derived:
    """What a shard keeps beside a recording."""
    waveform = resample(sound.samples, sound.rate, SAMPLE_RATE)
    peak = float(np.abs(waveform).max(initial=0.0))
    scaled = waveform / np.float32(peak) if peak > 0 else waveform
    return Derived(
        encode_flac(Sound(scaled, SAMPLE_RATE, 16)),
        pack_log_mel(log_mel(waveform)),
        pack_decibels(mel_decibels(waveform)) if longer_than_clip(sound.seconds) else b"",
    )


def read_clip(copy: bytes | memoryview, rng: np.random.Generator | None = None) -> NDArray[np.float32]:
    """Seven seconds ``(112000,)`` of a training copy: from a random start with ``rng``, else from 0.

    The same as :func:`stetholm.audio.features.crop` of the whole, but only these seconds are decoded.

    Raises:
        AudioError: it is no training copy.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(copy)) as file:
            if (file.samplerate, file.channels) != (SAMPLE_RATE, 1):
                raise AudioError(f"a training copy has {file.samplerate} Hz and {file.channels} channels: ingest again")
            surplus = file.frames - CLIP_SAMPLES
            if rng is not None and surplus > 0:
                file.seek(int(rng.integers(surplus + 1)))
            return crop(file.read(CLIP_SAMPLES, dtype="float32"))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"a training copy cannot be decoded ({error.error_string}): ingest again") from error


def pack_log_mel(features: NDArray[np.float32]) -> bytes:
    """A spectrogram ``(64, 218)`` in [0, 1] as 16-bit fixed point."""
    return np.rint(features * _STEPS).astype("<u2").tobytes()


def unpack_log_mel(packed: bytes | memoryview) -> NDArray[np.float32]:
    """A spectrogram ``(64, 218)`` that :func:`pack_log_mel` packed, to 8e-6.

    Raises:
        AudioError: it is none.
    """
    if len(packed) != 2 * N_MELS * N_FRAMES:
        raise AudioError(f"a log-mel of {len(packed)} bytes is none of this version: ingest again")
    steps = np.frombuffer(packed, "<u2").reshape(N_MELS, N_FRAMES)
    return np.multiply(steps, np.float32(1 / _STEPS), dtype=np.float32)


def pack_decibels(decibels: NDArray[np.float32]) -> bytes:
    """Decibels ``(64, frames)`` in 16-bit fixed point, frame after frame, behind their least and greatest value."""
    ends = np.array([decibels.min(), decibels.max()], "<f4")
    steps = np.rint((decibels - ends[0]) * (_STEPS / max(ends[1] - ends[0], np.float32(1e-6))))
    return ends.tobytes() + np.ascontiguousarray(steps.T, "<u2").tobytes()


def crop_decibels(packed: bytes | memoryview, rng: np.random.Generator) -> NDArray[np.float32]:
    """The log-mel ``(64, 218)`` of seven seconds from a random frame of what :func:`pack_decibels` packed.

    Raises:
        AudioError: it is none, or shorter than a clip.
    """
    frames, rest = divmod(len(packed) - _ENDS_BYTES, 2 * N_MELS)
    if rest or frames < CLIP_FRAMES:
        raise AudioError(f"decibels of {len(packed)} bytes are none of this version: ingest again")
    low, high = np.frombuffer(packed, "<f4", 2)
    start = int(rng.integers(frames - CLIP_FRAMES + 1))
    steps = np.frombuffer(packed, "<u2", CLIP_FRAMES * N_MELS, _ENDS_BYTES + 2 * N_MELS * start)
    decibels = np.multiply(steps, (high - low) / np.float32(_STEPS), dtype=np.float32)
    return normalise(decibels.reshape(CLIP_FRAMES, N_MELS).T)
