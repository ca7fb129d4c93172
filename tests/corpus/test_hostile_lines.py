"""Hostile lists of pairs: every line is a pair or a reason of one line, in little memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.corpus.folder import LocalFolder, RecordingError
from stetholm.corpus.schema import MAX_LINE_BYTES, Entry, Reject
from stetholm.corpus.sources.stethobench import JsonLines
from stetholm.storage import Storage
from tests.corpus.sounds import pair

GOOD = json.dumps(pair("a.wav")).encode()
HUGE = 100 * 2**20


def found(path: Path, storage: Storage, data: bytes | None = None) -> list[Entry | Reject]:
    if data is not None:
        path.write_bytes(data)
    return list(JsonLines(str(path), storage).entries())


def with_field(key: str, value: bytes) -> bytes:
    """A good line with one more field, as it stands in the file."""
    return GOOD[:-1] + b', "' + key.encode() + b'": ' + value + b"}"


@pytest.mark.parametrize("end", [b'"}\n', b'"}', b""])
def test_a_line_of_100_mb_is_one_reject_and_takes_little_memory(tmp_path: Path, storage: Storage, end: bytes) -> None:
    path = tmp_path / "pairs.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'\n{"instruction": "')
        file.seek(HUGE)  # a hole: no disk is filled
        file.write(end + GOOD * end.endswith(b"\n"))
        file.truncate(max(HUGE, file.tell()))
    tracemalloc.start()
    try:
        items = found(path, storage)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert items[1] == Reject(str(path), 2, f"line is longer than {MAX_LINE_BYTES} bytes")
    assert [(type(item), item.line) for item in (items[0], *items[2:])] == [(Entry, 1), (Entry, 3)][: len(items) - 1]
    assert len(items) == (3 if end.endswith(b"\n") else 2)
    assert peak < 8 * MAX_LINE_BYTES


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (with_field("x", b"[" * 200_000 + b"]" * 200_000), "not JSON: recursion"),
        (with_field("x", b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "not JSON: recursion"),
        (with_field("filename", b'"../b.wav"'), "leaves the audio folder"),  # of two the last one counts
        (with_field("x", b"9" * 1_000_000), "not JSON: number out of range"),
        (with_field("patient", b"-1e999"), "'patient'"),
        (with_field("response", b'"\\ud800"'), "not JSON"),
        (with_field("\\udfff", b"1"), "not JSON"),
        (with_field("response", b'"\xed\xa0\x80"'), "invalid UTF-8"),
        (with_field("response", b'"a\x01b"'), "not JSON: control character"),
        (GOOD.decode().encode("utf-16-le"), "not JSON"),
        (GOOD + GOOD, "not JSON: trailing"),
        (with_field("filename", json.dumps(["a.wav"] * 100_000).encode()), "at most 16"),
        (with_field("filename", b"true"), "'filename'"),
        (with_field("filename", b'[[["a.wav"]]]'), "'filename'"),
        (with_field("filename", b'""'), "'filename'"),
        (with_field("filename", b'".."'), "leaves the audio folder"),
        (with_field("filename", b'"a/./../../b.wav"'), "leaves the audio folder"),
        (with_field("filename", b'"\\u002e\\u002e/b.wav"'), "leaves the audio folder"),
        (with_field("filename", b'"//etc/passwd"'), "absolute"),
        (with_field("filename", b'"a.wav\\u0000.txt"'), "cannot be printed"),
        (with_field("split", b'["train"]'), "'split'"),
        (with_field("task", b'{"a": 1}'), "'task'"),
        (with_field("distribution", b"5"), "'distribution'"),
        (with_field("patient", b"5"), "'patient'"),
    ],
)  # fmt: skip
def test_hostile_lines_are_rejected_with_their_reason(
    tmp_path: Path, storage: Storage, line: bytes, reason: str
) -> None:
    bad, good = found(tmp_path / "pairs.jsonl", storage, line + b"\n" + GOOD)
    assert isinstance(bad, Reject) and reason in bad.reason
    assert bad.reason.isprintable() and len(bad.reason) < 600
    assert isinstance(good, Entry) and good.line == 2


@pytest.mark.parametrize(
    "value", [b"1e999", b"1e-" + b"9" * 1_000, b"0." + b"9" * 100_000, b"NaN", b"[" * 99 + b"]" * 99]
)
def test_what_stands_in_unknown_fields_does_not_matter(tmp_path: Path, storage: Storage, value: bytes) -> None:
    (item,) = found(tmp_path / "pairs.jsonl", storage, with_field("x", value))
    assert isinstance(item, Entry)


ODD_NAMES = [
    "C:\\Windows\\win.ini",
    "..\\secret.wav",
    "a\\..\\..\\secret.wav",
    "~/secret.wav",
    "file:///etc/passwd",
    "s3://bucket/key",
    ".",
    "./",
    "...",
    " ../secret.wav",
    "․․/secret.wav",
    "x" * 100_000,
    "a/" * 50_000,
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_names_below_the_folder(tmp_path: Path, storage: Storage, name: str) -> None:
    """Windows' spellings and others mean nothing here: no file of that name is there, and nothing else is read."""
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (tmp_path / "audio").mkdir()
    (item,) = found(tmp_path / "pairs.jsonl", storage, json.dumps(pair(name)).encode())
    assert isinstance(item, Entry) and item.pair.filenames == (name,)
    with pytest.raises(RecordingError, match=r"is not there|is not a file|cannot be read"):
        LocalFolder(str(tmp_path / "audio")).read(name, 100)


def assert_pair_or_reason(path: Path, storage: Storage, data: bytes) -> None:
    for item in found(path, storage, data):
        assert isinstance(item, Entry) or (item.reason and "\n" not in item.reason and len(item.reason) < 600)


@settings(max_examples=300, derandomize=True)
@given(data=st.binary(max_size=300))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, storage: Storage, data: bytes) -> None:
    assert_pair_or_reason(tmp_path_factory.getbasetemp() / "bytes.jsonl", storage, data)


@settings(max_examples=300, derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_good_line_damaged(
    tmp_path_factory: pytest.TempPathFactory, storage: Storage, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(GOOD)
    for at, byte in changes:
        data[at] = byte
    assert_pair_or_reason(tmp_path_factory.getbasetemp() / "damaged.jsonl", storage, bytes(data))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, derandomize=True)
@given(key=st.sampled_from([*pair("a.wav"), "patient", "site", "device", "model", "distribution"]), value=VALUES)
def test_a_good_line_with_any_value(
    tmp_path_factory: pytest.TempPathFactory, storage: Storage, key: str, value: Any
) -> None:
    line = json.dumps({**pair("a.wav"), key: value}).encode()
    assert_pair_or_reason(tmp_path_factory.getbasetemp() / "values.jsonl", storage, line)
