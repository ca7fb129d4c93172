"""Hostile sounds: each ends as an AudioError with its reason, within bounded memory; no damaged file does worse."""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import select
import struct
import subprocess
import sys
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stetholm.audio.decode import FORMATS, AudioError, Sound, _ogg_checksum, decode
from stetholm.corpus.folder import LocalFolder
from stetholm.settings import AudioSettings

MIB = 2**20
TWO_HOURS = 2 * 60 * 60
LIMITS = AudioSettings(max_bytes=MIB, max_seconds=20.0)
FILES = 2_000
"""Damaged files that one run of the tests decodes."""
MOST_MIB = 64
"""What decoding any of them may add to the memory of the process that does; 20 s at 192 kHz are 15 MiB."""
PATIENCE = 30.0
"""Seconds after which decoding one file of at most 1 MiB counts as a hang; it takes some 50 ms at worst."""
EXTREMES = (
    0,
    1,
    2,
    3,
    7,
    0x7F,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 16,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
ID3 = b"ID3\4\0\0\0\0\0\5title"


def encoded(
    samples: np.ndarray, rate: int = 8_000, container: str = "WAV", subtype: str | None = None, endian: str = "FILE"
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype, endian=endian)
    return buffer.getvalue()


def noise(count: int = 8_000, channels: int = 1) -> np.ndarray:
    return np.clip(0.3 * np.random.default_rng(0).standard_normal((count, channels)), -1, 1)


def silence(seconds: int, rate: int, container: str, subtype: str | None = None) -> bytes:
    buffer, minute = io.BytesIO(), np.zeros(60 * rate, np.float32)
    with soundfile.SoundFile(buffer, "w", rate, 1, subtype, format=container) as file:
        for _ in range(seconds // 60):
            file.write(minute)
    return buffer.getvalue()


def silent_mp3(seconds: int) -> bytes:
    """One frame of silence over and over, without the first of all, which tells how many there are."""
    short = encoded(np.zeros(8_000), container="MP3")
    frame = short[:2] + short.split(short[:2])[6]
    return frame * int(seconds * 8_000 / 576 + 1)


def claims(data: bytes, marker: bytes, skip: int, value: bytes) -> bytes:
    """``data`` with ``value`` written ``skip`` bytes behind ``marker``."""
    at = data.index(marker) + len(marker) + skip
    return data[:at] + value + data[at + len(value) :]


def flac_of_4g_samples() -> bytes:
    """The low 32 of the 36 bits of STREAMINFO that count samples, all set."""
    return claims(encoded(noise(), container="FLAC"), b"fLaC", 4 + 14, b"\xff" * 4)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "half an RF64": (lambda: half(encoded(noise(), container="RF64")), r"truncated: \d+ of 16000 bytes"),
    "half a WAV of big-endian": (lambda: half(encoded(noise(), endian="BIG")), r"truncated: \d+ of 16000 bytes"),
    "half a WAV behind ID3 tags": (lambda: ID3 * 3 + half(encoded(noise())), r"truncated: \d+ of 16000 bytes"),
    "an OGG without its end": (lambda: encoded(noise(), container="OGG")[:-1], "no whole OGG page"),
    "a WAV of nothing but NaN": (lambda: encoded(np.full(99, np.nan), subtype="FLOAT"), "not finite"),
    "infinities that cancel": (lambda: encoded(np.array([[np.inf, -np.inf]] * 9), subtype="FLOAT"), "not finite"),
    "doubles beyond float": (lambda: encoded(np.full((9, 2), 1e300), subtype="DOUBLE"), "not finite"),
    "8 channels": (lambda: encoded(noise(channels=8)), "8 channels are more than"),
    "1024 channels": (lambda: encoded(noise(9, 1024)), "1024 channels are more than"),
    "1 Hz": (lambda: encoded(noise(), 1), "sampling rate 1 Hz is outside"),
    "1 MHz": (lambda: encoded(noise(), 1_000_000), "sampling rate 1000000 Hz is outside"),
    "two hours of WAV": (lambda: silence(TWO_HOURS, 1_000, "WAV", "PCM_U8"), "longer than audio.max_seconds = 600"),
    "two hours of FLAC": (lambda: silence(TWO_HOURS, 8_000, "FLAC"), "longer than audio.max_seconds = 600"),
    "twenty minutes of OGG": (lambda: silence(TWO_HOURS // 6, 8_000, "OGG"), "longer than audio.max_seconds = 600"),
    "two hours of MP3": (lambda: silent_mp3(TWO_HOURS), "longer than audio.max_seconds = 600"),
    "two hours of many bytes": (lambda: silence(TWO_HOURS, 8_000, "WAV"), "larger than audio.max_bytes"),
    "a WAV that claims 1.9 GB": (
        lambda: claims(encoded(noise()), b"data", 0, struct.pack("<I", 1_900_000_000)),
        "truncated: 16000 of 1900000000 bytes",
    ),
    "an RF64 that claims 4 GB": (
        lambda: claims(encoded(noise(), container="RF64"), b"ds64", 4 + 8, struct.pack("<Q", 2**32)),
        "truncated: 16000 of 4294967296 bytes",
    ),
    "a FLAC that claims 4 G samples": (flac_of_4g_samples, "truncated: 8000 of 4294967295 samples|not a readable"),
    "MPEG layer I": (lambda: bytes([0xFF, 0xFE, 0x14, 0xC0, *range(28)]) * 500, "MPEG_LAYER_I is not supported"),
    "a thousand ID3 tags": (lambda: ID3 * 1_000 + encoded(noise()), "more than 100 ID3 tags"),
    "an ID3 tag of 256 MB": (lambda: b"ID3\4\0\0\x7f\x7f\x7f\x7f" + encoded(noise()), "not a readable"),
    # libogg would take minutes over either.
    "60 MiB of page marks": (lambda: encoded(noise(), container="OGG") + b"OggS" * (15 * MIB), "no whole OGG page"),
    "the same behind a tag": (
        lambda: ID3 + encoded(noise(), container="OGG") + b"OggS" * (15 * MIB),
        "no whole OGG page",
    ),
}


@contextlib.contextmanager
def peak_below(most: float) -> Iterator[None]:
    """Fails where Python and numpy take more bytes than ``most`` meanwhile."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / MIB:.0f} MiB of at most {most / MIB:.0f}"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_audio_is_refused_with_its_reason(name: str, recwarn: pytest.WarningsRecorder) -> None:
    make, reason = HOSTILE[name]
    data = make()
    # The longest that is decoded before it is refused has 600 s at 8 kHz, 18 MiB; a tag is cut off by a copy.
    with peak_below(40 * MIB + len(data)), pytest.raises(AudioError, match=reason) as error:
        decode(data)
    assert "\n" not in str(error.value)
    assert not recwarn.list


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(encoded(noise(16_000), container="MP3"))
    (tmp_path / "text.wav").write_text("This is a text.\n" * 1_000)
    folder = LocalFolder(str(tmp_path))
    assert decode(folder.read("song.wav", MIB)).seconds == pytest.approx(2.0, abs=0.15)
    with pytest.raises(AudioError, match="not a readable WAV"):
        decode(folder.read("text.wav", MIB))


@pytest.mark.parametrize("container", sorted(FORMATS))
def test_a_tag_in_front_changes_nothing(container: str) -> None:
    data = encoded(noise(), container=container)
    np.testing.assert_array_equal(decode(ID3 + data).samples, decode(data).samples)


def test_samples_are_in_memory_once() -> None:
    count, rate = 60 * 192_000, 192_000
    data = encoded(np.full((count, 2), 2.0, np.float32), rate, "WAV", "FLOAT")
    block = 2**18 * 3 * 4
    with peak_below(count * 4 * 1.2 + 3 * block):
        sound = decode(data, AudioSettings(max_bytes=len(data)))
    assert len(sound.samples) == count and sound.samples.max() == 1.0


def resealed(data: bytes) -> bytes:
    """OGG pages with one serial number and right checksums, as far as there are pages: damage that libogg takes in."""
    sealed = b""
    while (rest := data[len(sealed) :])[:4] == b"OggS" and len(rest) > 27:
        table = rest[27 : 27 + rest[26]]
        page = rest[: 27 + len(table) + sum(table)]
        page = page[:14] + b"seal" + page[18:22] + bytes(4) + page[26:]
        sealed += page[:22] + _ogg_checksum(page) + page[26:]
        if len(page) > len(rest):
            break
    return sealed + data[len(sealed) :]


def originals() -> list[bytes]:
    """A short file of each accepted container, encoding, byte order and of one and two channels; always the same."""
    made = []
    for container in sorted(FORMATS):
        for subtype in soundfile.available_subtypes(container):
            for channels, endian in [(1, "FILE"), (2, "FILE"), (1, "BIG"), (2, "BIG")]:
                with contextlib.suppress(ValueError, soundfile.LibsndfileError):  # there is no such combination
                    made.append(encoded(noise(1_500, channels), 8_000, container, subtype, endian))
    made = [claims(data, b"PEAK", 8, b"time") if b"PEAK" in data[:200] else resealed(data) for data in made]
    return [data for data in made if len(data) > 100]


def flip(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    within = len(data) if chance.random() < 0.5 else min(128, len(data))
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(within)] = chance.randrange(256)


def cut(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    at = chance.randrange(len(data))
    del data[at : None if chance.random() < 0.5 else at + chance.randint(1, 64)]


def splice(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    other = chance.choice(others)
    data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]


def exaggerate(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    width, at = chance.choice([2, 4, 8]), chance.randrange(min(128, len(data)))
    value = chance.choice(EXTREMES) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, chance.choice(["little", "big"]))


def repeat(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    at = chance.randrange(len(data))
    data[at:at] = data[at : at + chance.randint(1, 200)] * chance.choice([1, 2, 10, 300, 3_000])


def append(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    data += chance.randbytes(chance.randint(1, 3_000))


def prefix(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    data[0:0] = (
        b"ID3" + bytes([chance.randint(0, 4), 0, 0, 0, 0, 0, chance.randint(0, 20)]) + bytes(chance.randint(0, 20))
    )


DAMAGES = (flip, flip, cut, splice, exaggerate, exaggerate, repeat, append, prefix)


def damaged(number: int, files: list[bytes]) -> bytes:
    """The damaged file of this number; the same whenever it is made."""
    chance = random.Random(number)
    data = bytearray(files[number % len(files)])
    for damage in chance.choices(DAMAGES, k=chance.randint(1, 4)):
        if len(data) > 8:
            damage(data, chance, files)
    return (resealed(bytes(data)) if chance.random() < 0.8 else bytes(data))[: LIMITS.max_bytes]


class Decoder:
    """A process of its own that decodes one file after the other."""

    def __init__(self, errors: Path) -> None:
        command = [sys.executable, __file__]
        with errors.open("ab") as file:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file)
        assert self._process.stdin and self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout

    def verdict(self, data: bytes) -> tuple[str, float]:
        """What came of it and the MiB that decoding has added at most since the start."""
        with contextlib.suppress(BrokenPipeError):
            self._to.write(struct.pack("<I", len(data)) + data)
            self._to.flush()
        if not select.select([self._from], [], [], PATIENCE)[0]:
            return f"hangs for {PATIENCE:g} s", 0.0
        if not (line := self._from.readline()):
            return f"ends the process with status {self._process.wait()}", 0.0
        text, mib = json.loads(line)
        return text, mib

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def decoder(tmp_path: Path) -> Iterator[Decoder]:
    child = Decoder(tmp_path / "stderr.txt")
    yield child
    child.close()


def test_every_damaged_file_is_a_sound_or_refused(decoder: Decoder, tmp_path: Path) -> None:
    files, verdicts = originals(), Counter[str]()
    for number in range(-len(files), FILES):  # the whole ones first
        data, allowed = (files[number], ("sound",)) if number < 0 else (damaged(number, files), ("sound", "refused: "))
        verdict, mib = decoder.verdict(data)
        if not verdict.startswith(allowed) or mib > MOST_MIB:
            saved = tmp_path / f"file{number}.hex"
            saved.write_text(data.hex())
            pytest.fail(f"file {number}, as hex in {saved}: {verdict} (memory +{mib:.0f} MiB)")
        verdicts[verdict] += 1
    assert verdicts["sound"] > FILES / 10 and len(verdicts) > 10, verdicts
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text(errors="replace")


def is_sound(sound: Sound) -> bool:
    samples = sound.samples
    return (
        samples.ndim == 1
        and samples.dtype == np.float32
        and len(samples) > 0
        and bool(np.isfinite(samples).all() and np.abs(samples).max() <= 1.0)
        and LIMITS.min_rate <= sound.rate <= LIMITS.max_rate
        and sound.bits in (16, 24)
        and sound.seconds <= LIMITS.max_seconds
    )


def said(data: bytes) -> str:
    try:
        sound = decode(data, LIMITS)
    except AudioError as error:
        reason = str(error)
        return f"refused: {reason.partition(':')[0]}" if reason.strip() and "\n" not in reason else f"says {reason!r}"
    except BaseException:
        return f"raises {traceback.format_exc()}"
    return "sound" if is_sound(sound) else f"is no sound: {sound}"


def status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def answer() -> None:
    """What the process of :class:`Decoder` does."""
    room = int((status_mib("VmSize") + 1024) * MIB)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    before = status_mib("VmHWM")
    while head := sys.stdin.buffer.read(4):
        verdict = said(sys.stdin.buffer.read(*struct.unpack("<I", head)))
        print(json.dumps([verdict, status_mib("VmHWM") - before]), flush=True)


if __name__ == "__main__":
    answer()
