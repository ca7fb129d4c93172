"""Shards and the manifest: what is written can be read back, and is visible only when it is whole."""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.audio.decode import decode
from stetholm.corpus.derived import Derived, derive
from stetholm.corpus.manifest import CorpusError, Manifest
from stetholm.corpus.manifest import uri as manifest_uri
from stetholm.corpus.schema import Reject
from stetholm.corpus.shards import SCHEMA, merge_rejects, sample_id, write_corpus, write_rejects
from stetholm.errors import UserError
from stetholm.storage import Storage
from tests.corpus.sounds import rows


def read(storage: Storage, uri: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(uri)))


def test_rows_come_back_in_order(storage: Storage) -> None:
    uri = storage.join("test-shards")
    extra = [pa.field("chosen", pa.string()), pa.field("scores", pa.list_(pa.float32()))]
    train = [{**row, "chosen": f"c{index}", "scores": [0.5, 1.0]} for index, row in enumerate(rows(30))]
    written = write_corpus(
        storage, uri, {"train": train, "test": iter(rows(3))}, inputs={"from": 1}, extra=extra,
        shard_bytes=20_000, row_group_rows=4,
    )  # fmt: skip
    manifest = Manifest.load(storage, uri)
    assert manifest == written
    assert manifest.sha256 == hashlib.sha256(storage.read_bytes(manifest_uri(uri))).hexdigest()
    assert (manifest.rows, manifest.split("test").rows, manifest.recordings) == (33, 3, 5)
    shards = manifest.split("train").shards
    assert len(shards) > 1
    back = []
    for shard in shards:
        data = storage.read_bytes(f"{uri}/{shard.path}")
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
        file = pq.ParquetFile(io.BytesIO(data))
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        assert sizes == shard.row_groups and sum(sizes) == shard.rows
        back += file.read().to_pylist()
    missing = dict.fromkeys(("site", "device", "model"))
    derived = [[derive(decode(sound)) for sound in row["audio"]] for row in train]
    for row, sounds in zip(back, derived, strict=True):
        assert list(zip(*(row.pop(name) for name in Derived._fields), strict=True)) == sounds
        assert row.pop("seconds") == pytest.approx([0.2] * len(sounds))
    assert back == [{**missing, **row, "split": "train"} for row in train]


def test_counts(storage: Storage) -> None:
    uri = storage.join("test-shards-counts")
    manifest = write_corpus(storage, uri, {"val": [*rows(2), *rows(1, task="/")]}, inputs={})
    assert manifest.splits["val"].counts["task"] == {"/": 1, "Report": 2}


def test_arrow_tables(storage: Storage) -> None:
    uri = storage.join("test-shards-tables")
    table = pa.Table.from_pylist([{**row, "split": "train"} for row in rows(5)], schema=SCHEMA)
    manifest = write_corpus(storage, uri, {"train": [table, table.slice(0, 0)]}, inputs={})
    kept = [name for name in SCHEMA.names if name not in ("seconds", *Derived._fields)]  # derived where missing
    back = read(storage, f"{uri}/{manifest.splits['train'].shards[0].path}")
    assert back.select(kept).equals(table.select(kept))
    assert write_corpus(storage, uri, {"train": [back]}, inputs={}).splits == manifest.splits


def test_an_attempt_that_broke_off_is_not_there_and_leaves_nothing(storage: Storage) -> None:
    uri = storage.join("test-shards-broken")
    write_corpus(storage, uri, {"train": rows(20)}, inputs={}, shard_bytes=1)
    storage.write_bytes(f"{uri}/train/notes.txt", b"mine")

    def breaks() -> object:
        yield from rows(3)
        raise OSError("power cut")

    with pytest.raises(OSError, match="power cut"):
        write_corpus(storage, uri, {"train": breaks()}, inputs={}, shard_bytes=1)
    with pytest.raises(CorpusError, match=r"no corpus at .*jobs/ingest\.py"):
        Manifest.load(storage, uri)
    manifest = write_corpus(storage, uri, {"train": rows(2)}, inputs={})
    ours = {f"{uri}/{shard.path}" for shard in manifest.splits["train"].shards}
    assert set(storage.list(f"{uri}/train")) == ours | {f"{uri}/train/notes.txt"}


def test_split_without_rows(storage: Storage) -> None:
    manifest = write_corpus(storage, storage.join("test-shards-splits"), {"train": rows(1), "val": []}, inputs={})
    for name in ("test", "val"):
        with pytest.raises(CorpusError, match=rf"no rows in split '{name}'; it has: train \(1\)"):
            manifest.split(name)
    with pytest.raises(UserError, match="'dev'"):
        write_corpus(storage, storage.join("test-shards-splits"), {"dev": rows(1)}, inputs={})


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 1}', '{"version": 99}'])
def test_bad_manifest(storage: Storage, text: str) -> None:
    uri = storage.join("test-shards-bad")
    storage.write_text(manifest_uri(uri), text)
    with pytest.raises(CorpusError, match="ingest the corpus again"):
        Manifest.load(storage, uri)


@pytest.mark.parametrize("rejects", [[], [Reject("a.jsonl", 3, "why"), Reject("a.jsonl", 9, "because")]])
def test_rejects(storage: Storage, rejects: list[Reject]) -> None:
    uri = storage.join(f"test-shards-rejects-{len(rejects)}")
    where = write_rejects(storage, uri, merge_rejects(storage, uri, False, "stethobench a.jsonl", rejects))
    assert read(storage, where).column_names == ["source", "line", "reason", "origin"]
    # Those of other origins stay, this one's are those of its latest ingest.
    write_rejects(storage, uri, merge_rejects(storage, uri, True, "icbhi b", [Reject("b.wav", 0, "bad")]))
    write_rejects(storage, uri, merge_rejects(storage, uri, True, "stethobench a.jsonl", rejects))
    found = [Reject(row["source"], row["line"], row["reason"]) for row in read(storage, where).to_pylist()]
    assert found == [Reject("b.wav", 0, "bad"), *rejects]


TEXT = st.text(max_size=3)


@given(st.lists(TEXT, min_size=1, max_size=2), TEXT, TEXT, st.lists(TEXT, min_size=1, max_size=2), TEXT, TEXT)
def test_ids_depend_on_every_part(a: list[str], b: str, c: str, d: list[str], e: str, f: str) -> None:
    same = (a, b, c) == (d, e, f)
    assert (sample_id(a, b, c, "/") == sample_id(d, e, f, "/")) == same
