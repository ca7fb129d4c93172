"""What ingest computes once from each recording, so that no epoch does it again: the training copy and its log-mel.

The training copy is the recording at 16 kHz, scaled to full scale (the front end is blind to gain) and kept as 16-bit
FLAC: of chest sounds a quarter of the size of PCM. Its features differ by up to 0.02 from the recording's own where
these hang on their quietest cell. The log-mel is that of the first 7 s, before any rounding of the
copy, in 16-bit fixed point: exact to 8e-6, a tenth of the size of the copy.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile
from numpy.typing import NDArray

from stetholm.audio.decode import AudioError, Sound, encode_flac
from stetholm.audio.features import CLIP_SAMPLES, N_FRAMES, N_MELS, SAMPLE_RATE, crop, log_mel
from stetholm.audio.resample import resample

CLIP_SECONDS = CLIP_SAMPLES / SAMPLE_RATE
_STEPS = 2**16 - 1


def derive(sound: Sound) -> tuple[bytes, bytes]:
    """The training copy and the log-mel of a recording, as a shard keeps them."""
    waveform = resample(sound.samples, sound.rate, SAMPLE_RATE)
    peak = float(np.abs(waveform).max(initial=0.0))
    scaled = waveform / np.float32(peak) if peak > 0 else waveform
    return encode_flac(Sound(scaled, SAMPLE_RATE, 16)), pack_log_mel(log_mel(waveform))


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
