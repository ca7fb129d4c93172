"""Bounded decoding of untrusted audio bytes, and lossless FLAC encoding.

Audio bytes are hostile: their size is checked first, then the header, and the seconds are counted while
decoding, because a header may promise anything. libsndfile (through ``soundfile``) does the decoding.
"""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from stetholm.errors import UserError
from stetholm.settings import AudioSettings

FORMATS = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"})
"""Containers accepted, by libsndfile's names."""

_BLOCK_FRAMES = 2**18
_DEEP_SUBTYPES = frozenset({"PCM_24", "PCM_32", "FLOAT", "DOUBLE"})
# Not MP3; and libmpg123 writes a line or two to stderr for each bad frame of 32 bytes.
_OLD_SUBTYPES = frozenset({"MPEG_LAYER_I", "MPEG_LAYER_II"})
_MAX_CHUNKS = 1_000
_MAX_TAGS = 100
# Writers to a pipe leave the size of the data chunk near its maximum: then the header promises nothing.
_UNKNOWN_SIZE = 0x7FFF_0000
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class AudioError(UserError):
    """A sound that cannot be used. The message names the reason; the caller adds the file."""


@dataclass(frozen=True)
class Sound:
    """A decoded recording.

    Attributes:
        samples: mono waveform, float32 ``(n,)``, n >= 1, finite, within [-1, 1].
        rate: sampling rate in Hz.
        bits: bit depth to keep, 16 or 24.
    """

    samples: NDArray[np.float32]
    rate: int
    bits: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / self.rate


class _Bytes(io.BytesIO):
    """Bytes whose ``seek`` to before the start or beyond all offsets stays put; damaged files ask for both.

    The error that ``BytesIO`` raises there cannot pass through C: it would be printed and lost. libsndfile sees
    that it is not where it wanted to be, and reports that as an error of its own.
    """

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # getvalue() is the very bytes that came in; getbuffer() would copy them.
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: len(self.getvalue())}[whence]
        return super().seek(base + offset) if 0 <= base + offset <= sys.maxsize else self.tell()


def decode(data: bytes, limits: AudioSettings = AudioSettings()) -> Sound:  # noqa: B008 (immutable)
    """Decode WAV, FLAC, OGG or MP3 bytes to mono (mean of the channels) within ``limits``.

    A float source that exceeds full scale is scaled down to it as a whole, so that nothing is clipped.

    Raises:
        AudioError: too large, not decodable, outside the limits, truncated, empty or not finite.
    """
    if len(data) > limits.max_bytes:
        raise AudioError(f"audio of {len(data)} bytes is larger than audio.max_bytes = {limits.max_bytes}")
    if not data:
        raise AudioError("audio is empty (0 bytes)")
    data = _without_tags(data)
    _refuse_truncated_wav(data)
    _refuse_damaged_ogg(data)
    try:
        with soundfile.SoundFile(_Bytes(data)) as source:
            _check_header(source, limits)
            samples = _joined(_mono_blocks(source, limits))
            _check_samples(samples, source)
            return Sound(_fit_full_scale(samples), source.samplerate, 24 if source.subtype in _DEEP_SUBTYPES else 16)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"not a readable WAV, FLAC, OGG or MP3 ({_reason(error)})") from error


def encode_flac(sound: Sound) -> bytes:
    """FLAC bytes of ``sound``, quantised to ``sound.bits``: exact for samples that came from 16 or 24-bit PCM.

    Raises:
        AudioError: FLAC cannot hold it (an odd sampling rate, no samples).
    """
    if not len(sound.samples):
        raise AudioError("audio holds no samples")
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", sound.rate, 1, f"PCM_{sound.bits}", format="FLAC") as file:
            for start in range(0, len(sound.samples), _BLOCK_FRAMES):
                file.write(_pcm(sound.samples[start : start + _BLOCK_FRAMES], sound.bits))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"FLAC cannot hold audio at {sound.rate} Hz ({_reason(error)})") from error
    return buffer.getvalue()


def _pcm(samples: NDArray[np.float32], bits: int) -> NDArray[np.int32]:
    """Samples as integers of ``bits`` bits, in the upper bits of an int32, of which libsndfile reads them."""
    full_scale = 1 << (bits - 1)
    scaled = np.rint(np.asarray(samples, np.float64) * full_scale)
    return np.clip(scaled, -full_scale, full_scale - 1).astype(np.int32) << (32 - bits)


def _reason(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).removeprefix("Error : ").strip(" .\n")


def _check_header(source: soundfile.SoundFile, limits: AudioSettings) -> None:
    if source.format not in FORMATS:
        raise AudioError(f"audio format {source.format} is not supported: use WAV, FLAC, OGG or MP3")
    if source.subtype in _OLD_SUBTYPES:
        raise AudioError(f"audio encoding {source.subtype} is not supported: use WAV, FLAC, OGG or MP3")
    if not limits.min_rate <= source.samplerate <= limits.max_rate:
        raise AudioError(
            f"sampling rate {source.samplerate} Hz is outside audio.min_rate..max_rate = "
            f"{limits.min_rate}..{limits.max_rate}"
        )
    if source.channels > limits.max_channels:
        raise AudioError(f"{source.channels} channels are more than audio.max_channels = {limits.max_channels}")


def _mono_blocks(source: soundfile.SoundFile, limits: AudioSettings) -> Iterator[NDArray[np.float32]]:
    """Mono blocks until the source ends; stops with an error once more than ``max_seconds`` are decoded."""
    decoded, most = 0, limits.max_seconds * source.samplerate
    while len(block := source.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
        decoded += len(block)
        if decoded > most:
            raise AudioError(f"audio is longer than audio.max_seconds = {limits.max_seconds:g}")
        yield _mono(block)


def _mono(block: NDArray[np.float32]) -> NDArray[np.float32]:
    if block.shape[1] == 1:
        return block[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        mean: NDArray[np.float32] = block.mean(axis=1, dtype=np.float32)
    return mean


def _joined(blocks: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The blocks end to end, in memory once: a bytearray grows in place, where concatenating takes twice that."""
    samples = bytearray()
    for block in blocks:
        samples += block.data
    return np.frombuffer(samples, np.float32)


def _check_samples(samples: NDArray[np.float32], source: soundfile.SoundFile) -> None:
    if not len(samples):
        raise AudioError("audio holds no samples")
    # A frame count of lossy formats is an estimate; of FLAC it is a promise (absurd when unknown).
    if source.format == "FLAC" and len(samples) < source.frames < 1 << 36:
        raise AudioError(f"audio is truncated: {len(samples)} of {source.frames} samples are there")
    if not np.isfinite([samples.min(), samples.max()]).all():  # both are NaN if any sample is
        raise AudioError("audio holds samples that are not finite (NaN or infinite)")


def _fit_full_scale(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    peak = max(samples.max(), -samples.min())
    if peak > 1.0:
        samples /= peak
    return samples


def _without_tags(data: bytes) -> bytes:
    """Without the ID3 tags in front: libsndfile skips them, and what follows would escape the checks of a start."""
    position = 0
    for _ in range(_MAX_TAGS):
        if data[position : position + 3] != b"ID3":
            return data[position:]
        size = zip(data[position + 6 : position + 10], (21, 14, 7, 0), strict=False)
        position += 10 + sum((byte & 0x7F) << shift for byte, shift in size)
    raise AudioError(f"audio begins with more than {_MAX_TAGS} ID3 tags")


def _refuse_truncated_wav(data: bytes) -> None:
    """Libsndfile silently shortens a WAV that ends before its data chunk does; we do not."""
    if data[:4] not in (b"RIFF", b"RIFX", b"RF64") or data[8:12] != b"WAVE":
        return
    order: Literal["little", "big"] = "big" if data[:4] == b"RIFX" else "little"
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            return
        size = int.from_bytes(data[position + 4 : position + 8], order)
        if data[position : position + 4] == b"data":
            there, promised = len(data) - position - 8, _promised(data, size)
            if there < promised:
                raise AudioError(f"audio is truncated: {there} of {promised} bytes of samples are there")
            return
        position += 8 + size + size % 2


def _promised(data: bytes, size: int) -> int:
    """Bytes of samples that a WAV's header promises, by the ``size`` of its data chunk; 0 where it promises nothing."""
    if data[:4] == b"RF64" and data[12:16] == b"ds64" and size == 0xFFFF_FFFF:
        whole = int.from_bytes(data[28:36], "little")
        return whole if whole < 1 << 62 else 0
    return size if size < _UNKNOWN_SIZE else 0


def _refuse_damaged_ogg(data: bytes) -> None:
    """Where a page is damaged, libogg tries every ``OggS`` after it as a page: a second and more per MiB of them."""
    position = 0
    while data[:4] == b"OggS" and position < len(data):
        segments = data[position + 27 : position + 27 + int.from_bytes(data[position + 26 : position + 27])]
        page = data[position : position + 27 + len(segments) + sum(segments)]
        if page[:5] != b"OggS\0" or page[22:26] != _ogg_checksum(page[:22] + bytes(4) + page[26:]):
            raise AudioError(f"audio is truncated or damaged: at byte {position} there is no whole OGG page")
        position += len(page)


def _ogg_checksum(page: bytes) -> bytes:
    """OGG's CRC-32: zlib's with the bits of each byte in the other order, from 0 and not inverted."""
    return (zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF).to_bytes(4).translate(_REVERSED)
