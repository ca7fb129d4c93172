"""What ingest keeps beside a recording is what every epoch would compute."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.audio.decode import AudioError, Sound, decode, encode_flac
from stetholm.audio.features import CLIP_SAMPLES, N_FRAMES, N_MELS, crop, log_mel
from stetholm.audio.resample import resample
from stetholm.corpus.derived import derive, pack_log_mel, read_clip, unpack_log_mel


def sound(seconds: float, rate: int, gain: float = 0.5, bits: int = 16) -> Sound:
    rng = np.random.default_rng(int(seconds * rate))
    time = np.arange(int(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * 180 * time) + 0.05 * rng.standard_normal(len(time))
    return Sound((gain * wave / np.abs(wave).max()).astype(np.float32), rate, bits)


@pytest.mark.parametrize(("seconds", "rate", "gain"), [(3.0, 4000, 0.5), (9.0, 44_100, 0.02), (8.0, 16_000, 1.0)])
def test_copy_and_log_mel_are_those_of_the_recording(seconds: float, rate: int, gain: float) -> None:
    recording = sound(seconds, rate, gain, bits=24)
    copy, packed = derive(recording)
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
        copy, packed = derive(recording)
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
    copy, packed = derive(Sound(np.zeros(500, np.float32), 4000, 16))
    assert not read_clip(copy).any() and not unpack_log_mel(packed).any()


def test_what_is_no_copy_or_log_mel() -> None:
    with pytest.raises(AudioError, match="cannot be decoded"):
        read_clip(b"fLaC and nothing more")
    with pytest.raises(AudioError, match="4000 Hz"):
        read_clip(encode_flac(sound(1.0, 4000)))
    with pytest.raises(AudioError, match="5 bytes"):
        unpack_log_mel(b"12345")


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_packing_keeps_five_digits(seed: int) -> None:
    features = np.random.default_rng(seed).random((N_MELS, N_FRAMES), np.float32)
    unpacked = unpack_log_mel(pack_log_mel(features))
    assert unpacked.dtype == np.float32 and np.abs(unpacked - features).max() < 8e-6
    assert unpacked.min() >= 0 and unpacked.max() <= 1
