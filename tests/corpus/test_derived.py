"""What ingest keeps beside a recording is what every epoch would compute."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.audio.decode import AudioError, Sound, decode, encode_flac
from stetholm.audio.features import (
    CLIP_SAMPLES,
    HOP,
    N_FRAMES,
    N_MELS,
    crop,
    log_mel,
    mel_decibels,
    normalise,
)
from stetholm.audio.resample import resample
from stetholm.corpus.derived import (
    crop_decibels,
    derive,
    longer_than_clip,
    pack_decibels,
    pack_log_mel,
    read_clip,
    unpack_log_mel,
)


def sound(seconds: float, rate: int, gain: float = 0.5, bits: int = 16) -> Sound:
    rng = np.random.default_rng(int(seconds * rate))
    time = np.arange(int(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * 180 * time) + 0.05 * rng.standard_normal(len(time))
    return Sound((gain * wave / np.abs(wave).max()).astype(np.float32), rate, bits)


@pytest.mark.parametrize(("seconds", "rate", "gain"), [(3.0, 4000, 0.5), (9.0, 44_100, 0.02), (8.0, 16_000, 1.0)])
def test_copy_and_log_mel_are_those_of_the_recording(seconds: float, rate: int, gain: float) -> None:
    recording = sound(seconds, rate, gain, bits=24)
    copy, packed, decibels = derive(recording)
    assert bool(decibels) == (seconds > 7)
    waveform = resample(recording.samples, rate)
    np.testing.assert_allclose(unpack_log_mel(packed), log_mel(waveform), atol=1e-5)
    # Rounding to 16 bits stays below the front end's floor of -80 dB nearly everywhere.
    difference = np.abs(log_mel(read_clip(copy)) - log_mel(waveform))
    assert difference.max() < 5e-3 and difference.mean() < 1e-4
    np.testing.assert_allclose(read_clip(copy), crop(waveform / np.abs(waveform).max()), atol=2**-15)


def test_real_recordings(recordings: Path) -> None:
    paths = sorted((recordings / "lung").glob("*.wav")) + sorted((recordings / "heart").glob("*_001.wav"))
    for path in paths:
        recording = decode(path.read_bytes())
        copy, packed, _ = derive(recording)
        expected = log_mel(resample(recording.samples, recording.rate))
        np.testing.assert_allclose(unpack_log_mel(packed), expected, atol=1e-5)
        difference = np.abs(log_mel(read_clip(copy)) - expected)
        assert difference.max() < 2e-2


@settings(max_examples=25)
@given(st.integers(1, 3 * CLIP_SAMPLES), st.integers(0, 2**32 - 1))
def test_a_clip_is_the_crop_of_the_whole(length: int, seed: int) -> None:
    whole = np.random.default_rng(seed).integers(-(2**15), 2**15, length).astype(np.float32) / 2**15
    copy = encode_flac(Sound(whole, 16_000, 16))
    np.testing.assert_array_equal(read_clip(copy), crop(whole))
    clips = read_clip(copy, np.random.default_rng(seed)), crop(whole, np.random.default_rng(seed))
    np.testing.assert_array_equal(*clips)


def test_silence() -> None:
    copy, packed, _ = derive(Sound(np.zeros(500, np.float32), 4000, 16))
    assert not read_clip(copy).any() and not unpack_log_mel(packed).any()


def test_what_is_no_copy_or_log_mel() -> None:
    with pytest.raises(AudioError, match="cannot be decoded"):
        read_clip(b"fLaC and nothing more")
    with pytest.raises(AudioError, match="4000 Hz"):
        read_clip(encode_flac(sound(1.0, 4000)))
    with pytest.raises(AudioError, match="5 bytes"):
        unpack_log_mel(b"12345")
    for wrong in (b"", b"12345", derive(sound(8.0, 4000)).decibels[:-2], pack_decibels(np.ones((64, 218), np.float32))):
        with pytest.raises(AudioError, match="bytes are none of this version"):
            crop_decibels(wrong, np.random.default_rng(0))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_packing_keeps_five_digits(seed: int) -> None:
    features = np.random.default_rng(seed).random((N_MELS, N_FRAMES), np.float32)
    unpacked = unpack_log_mel(pack_log_mel(features))
    assert unpacked.dtype == np.float32 and np.abs(unpacked - features).max() < 8e-6
    assert unpacked.min() >= 0 and unpacked.max() <= 1


class First(np.random.Generator):
    """Draws what it is told to."""

    def __init__(self, number: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.number = number

    def integers(self, high: int) -> int:  # type: ignore[override]
        assert self.number < high
        return self.number


@pytest.mark.parametrize("frame", [0, 1, 62, 93])
def test_a_crop_of_decibels_is_the_log_mel_of_the_crop(frame: int) -> None:
    rng = np.random.default_rng(3)
    whole = 0.05 * rng.standard_normal(10 * 16_000).astype(np.float32)
    whole[64_000:72_000] *= 0.001  # the quietest and the loudest cell, in every crop
    whole[80_000:88_000] *= 10
    decibels = derive(Sound(whole, 16_000, 24)).decibels
    got = crop_decibels(decibels, First(frame))
    # Its first frame hears what lies before it, and so does the waveform with half a frame more at each end.
    margin = whole[max(0, frame * HOP - HOP) :][: (frame > 0) * HOP + CLIP_SAMPLES + HOP]
    expected = normalise(mel_decibels(margin)[:, int(frame > 0) :][:, : N_FRAMES + 1])
    np.testing.assert_allclose(got, expected, atol=3e-5)
    alone = log_mel(whole[frame * HOP :][:CLIP_SAMPLES])
    np.testing.assert_allclose(got[:, 1:], alone[:, 1:], atol=3e-5)


@settings(max_examples=40)
@given(st.integers(1, 16_000), st.integers(-3, 700), st.integers(0, 2**32 - 1))
def test_recordings_about_as_long_as_a_clip(rate: int, more: int, seed: int) -> None:
    """What is called longer than a clip has frames enough for a crop, at any rate and for any rounding of lengths."""
    recording = Sound(np.random.default_rng(seed).random(max(1, 7 * rate + more), np.float32), rate, 16)
    decibels = derive(recording).decibels
    assert bool(decibels) == longer_than_clip(recording.seconds)
    if decibels:
        assert crop_decibels(decibels, np.random.default_rng(seed)).shape == (N_MELS, N_FRAMES)


def test_decibels_of_silence() -> None:
    decibels = derive(Sound(np.zeros(9 * 4000, np.float32), 4000, 16)).decibels
    assert not crop_decibels(decibels, np.random.default_rng(0)).any()
