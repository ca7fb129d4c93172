"""Decoding: what is accepted, what is refused and how, and that FLAC loses nothing."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.audio.decode import AudioError, Sound, decode, encode_flac
from stetholm.errors import UserError
from stetholm.settings import AudioSettings

RECORDINGS = Path(__file__).parents[3] / "shared" / "recordings"


def encoded(samples: np.ndarray, rate: int = 8_000, container: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def noise(count: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    samples = 0.3 * np.random.default_rng(seed).standard_normal((count, channels))
    return np.clip(samples, -1, 1)[:, 0] if channels == 1 else np.clip(samples, -1, 1)


@pytest.mark.parametrize(
    ("container", "subtype", "bits"),
    [
        ("WAV", "PCM_16", 16),
        ("WAV", "PCM_U8", 16),
        ("WAV", "PCM_24", 24),
        ("WAV", "PCM_32", 24),
        ("WAV", "FLOAT", 24),
        ("WAVEX", "PCM_16", 16),
        ("FLAC", "PCM_16", 16),
        ("FLAC", "PCM_24", 24),
        ("OGG", "VORBIS", 16),
        ("MP3", "MPEG_LAYER_III", 16),
    ],
)
def test_formats_are_decoded_with_rate_length_and_depth(container: str, subtype: str, bits: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 8_000)
    sound = decode(encoded(tone, 8_000, container, subtype))
    assert (sound.rate, sound.bits, sound.samples.dtype) == (8_000, bits, np.float32)
    assert abs(len(sound.samples) - 16_000) <= 1_152
    assert sound.seconds == pytest.approx(2.0, abs=0.15)
    assert np.corrcoef(sound.samples[2_000:14_000], tone[2_000:14_000])[0, 1] > 0.9


def test_channels_are_averaged() -> None:
    stereo = noise(500, channels=2)
    mono = decode(encoded(stereo, subtype="FLOAT")).samples
    np.testing.assert_allclose(mono, stereo.mean(axis=1), atol=1e-6)


def test_float_beyond_full_scale_is_scaled_not_clipped() -> None:
    samples = np.linspace(-400.0, 400.0, 1_000)
    decoded = decode(encoded(samples, subtype="FLOAT")).samples
    np.testing.assert_allclose(decoded, samples / 400.0, atol=1e-6)


@pytest.mark.parametrize("container", ["FLAC", "OGG", "WAV"])
def test_many_blocks_make_the_whole(container: str) -> None:
    samples = noise(75 * 1_000)
    assert len(decode(encoded(samples, 1_000 if container != "OGG" else 8_000, container)).samples) == len(samples)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not audio at all" * 20, "not a readable"),
        (encoded(noise(100))[:30], "not a readable"),
        (encoded(np.zeros(0)), "no samples"),
        (encoded(noise(4_000))[:-100], "truncated"),
        (encoded(noise(4_000), subtype="FLOAT")[:-1_000], "truncated"),
        (encoded(noise(20_000), container="FLAC")[:-4_000], "truncated|not a readable"),
        (encoded(np.array([0.1, np.nan, 0.2]), subtype="FLOAT"), "not finite"),
        (encoded(np.array([0.1, np.inf, 0.2]), subtype="FLOAT"), "not finite"),
        (encoded(noise(100), rate=500), "outside audio.min_rate"),
        (encoded(noise(100), rate=400_000), "outside audio.min_rate"),
        (encoded(noise(100, channels=3)), "3 channels"),
        (encoded(noise(100), container="AIFF"), "AIFF is not supported"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(AudioError, match=reason) as error:
        decode(data)
    assert isinstance(error.value, UserError)
    assert "\n" not in str(error.value)


def test_size_is_checked_before_anything_else() -> None:
    with pytest.raises(AudioError, match="max_bytes = 100"):
        decode(b"\0" * 101, AudioSettings(max_bytes=100))


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
def test_seconds_are_counted_while_decoding(container: str) -> None:
    data = encoded(np.zeros(8_000 * 5), 8_000, container)
    assert decode(data, AudioSettings(max_seconds=6.0)).seconds == pytest.approx(5.0, abs=0.2)
    with pytest.raises(AudioError, match=r"longer than audio\.max_seconds = 4"):
        decode(data, AudioSettings(max_seconds=4.0))


def test_wav_of_unknown_size_as_pipes_write_it_is_accepted() -> None:
    data = bytearray(encoded(noise(1_000)))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFF_FFFF)
    assert len(decode(bytes(data)).samples) == 1_000


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_sound_or_an_audio_error(data: st.DataObject) -> None:
    container = data.draw(st.sampled_from(["WAV", "FLAC", "OGG", "MP3"]))
    damaged = bytearray(encoded(noise(3_000), container=container))
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=12)):
        damaged[position] = data.draw(st.integers(0, 255))
    try:
        sound = decode(bytes(damaged), AudioSettings(max_seconds=5.0))
    except AudioError:
        return
    assert len(sound.samples) and np.isfinite(sound.samples).all() and np.abs(sound.samples).max() <= 1.0


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(16, np.int16), (24, np.int32)]),
    st.integers(1, 2_000),
    st.sampled_from([1_000, 4_000, 11_025, 44_100, 96_000]),
    st.integers(0, 2**32 - 1),
)
def test_flac_round_trip_is_exact(depth: tuple[int, type], count: int, rate: int, seed: int) -> None:
    bits, _ = depth
    half = 1 << (bits - 1)
    whole = np.random.default_rng(seed).integers(-half, half, count)
    sound = Sound((whole / half).astype(np.float32), rate, bits)
    again = decode(encode_flac(sound))
    assert (again.rate, again.bits) == (rate, bits)
    np.testing.assert_array_equal(again.samples, sound.samples)


def test_flac_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(AudioError, match="no samples"):
        encode_flac(Sound(np.zeros(0, np.float32), 8_000, 16))


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no real recordings beside the project")
def test_real_recordings_survive_flac() -> None:
    for path in sorted(RECORDINGS.glob("*/*.wav"))[::40]:
        sound = decode(path.read_bytes())
        again = decode(encode_flac(sound)).samples
        atol = 0.0 if soundfile.info(path).subtype in ("PCM_16", "PCM_24") else 2.0**-23
        np.testing.assert_allclose(again, sound.samples, atol=atol, rtol=0)
