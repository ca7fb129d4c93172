"""The reader of JSON Lines: line numbers, reasons, and bounded memory."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.schema import Entry, Reject
from stetholm.corpus.sources.stethobench import JsonLines, bounded_lines
from stetholm.errors import UserError
from stetholm.storage import Storage
from tests.corpus.sounds import pair


@given(st.lists(st.text("ab", max_size=12)), st.integers(1, 8))
def test_bounded_lines_are_the_lines_cut_short(lines: list[str], limit: int) -> None:
    file = io.BytesIO("\n".join(lines).encode())
    whole = [line + "\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]
    assert [line.decode() for line in bounded_lines(file, limit)] == [line[: limit + 1] for line in whole]


def test_each_line_is_a_pair_or_a_reason(tmp_path: Path, storage: Storage) -> None:
    path = tmp_path / "pairs.jsonl"
    good = json.dumps(pair("a.wav")).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\n{\n" + b" " * (3 << 20) + good + b"\n" + good)
    found = list(JsonLines(str(path), storage).entries())
    assert [(type(item), item.line) for item in found] == [(Entry, 1), (Reject, 3), (Reject, 4), (Entry, 5)]
    assert found[2] == Reject(str(path), 4, "line is longer than 1048576 bytes")


def test_the_same_from_object_storage(tmp_path: Path, storage: Storage) -> None:
    data = b"".join(json.dumps(pair(f"{index}.wav")).encode() + b"\n" for index in range(3))
    (tmp_path / "pairs.jsonl").write_bytes(data)
    uri = storage.join("test-stethobench", "pairs.jsonl")
    storage.write_bytes(uri, data)
    here, there = JsonLines(str(tmp_path / "pairs.jsonl"), storage, "x"), JsonLines(uri, storage, "x")
    there.check()
    assert list(here.entries()) == list(there.entries())
    assert here.sha256() == there.sha256()


@pytest.mark.parametrize("where", ["no/such.jsonl", "."])
def test_missing_file(where: str, storage: Storage) -> None:
    with pytest.raises(UserError, match="is not a file"):
        JsonLines(where, storage).check()
