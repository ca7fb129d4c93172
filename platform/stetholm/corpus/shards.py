"""Parquet shards: one row a pair, its recordings beside it as FLAC bytes. See docs/data.md for the columns."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stetholm.audio.decode import decode
from stetholm.corpus import catalog
from stetholm.corpus.derived import Derived, derive
from stetholm.corpus.manifest import Counts, Manifest, ShardInfo, SplitInfo, part_path
from stetholm.corpus.schema import SPLITS, Reject
from stetholm.errors import UserError
from stetholm.storage import Storage

SHARD_BYTES = 128 * 2**20
ROW_GROUP_ROWS = 64

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("recording_ids", pa.list_(pa.string()), nullable=False),
        pa.field("audio", pa.list_(pa.binary()), nullable=False),  # FLAC, original rate and bit depth
        pa.field("audio_16khz", pa.list_(pa.binary()), nullable=False),  # the training copy: stetholm.corpus.derived
        pa.field("log_mel", pa.list_(pa.binary()), nullable=False),  # of the first 7 s, 16-bit fixed point
        pa.field("decibels", pa.list_(pa.binary()), nullable=False),  # of a longer recording's whole length
        pa.field("sampling_rate", pa.list_(pa.int32()), nullable=False),  # Hz
        pa.field("seconds", pa.list_(pa.float32()), nullable=False),
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("distribution", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("patient", pa.string(), nullable=False),
        pa.field("site", pa.string()),
        pa.field("device", pa.string()),
        pa.field("model", pa.string()),
    ]
)
"""Columns of every shard. Further ones may follow."""

SOUNDS = ("audio", *Derived._fields)
"""Columns that hold recordings."""

REJECTS = pa.schema([("source", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("origin", pa.string())])

Row = Mapping[str, Any]


def sample_id(recording_ids: Sequence[str], instruction: str, response: str, task: str) -> str:
    """Id of a pair: 16 hex digits that depend on its content alone."""
    parts = [*recording_ids, instruction, response, task]
    # Lengths before contents, so that no two different lists of parts run together to the same bytes.
    digest = hashlib.sha256(b"".join(len(part.encode()).to_bytes(8) + part.encode() for part in parts))
    return digest.hexdigest()[:16]


class ShardWriter:
    """Writes one shard to a temporary file and uploads it when closed; a context manager.

    Args:
        storage: where it goes.
        corpus_uri: the corpus.
        split: of its rows.
        index: of the shard within the split (:func:`part_path`).
        extra: columns after those of :data:`SCHEMA`.
        row_group_rows: rows of a row group, the unit in which the stream reads.
    """

    def __init__(
        self,
        storage: Storage,
        corpus_uri: str,
        split: str,
        index: int,
        *,
        extra: Iterable[pa.Field] = (),
        row_group_rows: int = ROW_GROUP_ROWS,
    ) -> None:
        self._storage, self._uri = storage, corpus_uri.rstrip("/")
        self._split, self._index = split, index
        self._schema = pa.schema([*SCHEMA, *extra])
        self._row_group_rows = row_group_rows
        self._pending: list[Row] = []
        self._row_groups: list[int] = []
        self._folder = tempfile.TemporaryDirectory(prefix="stetholm-shard-")
        self._file = Path(self._folder.name) / "shard.parquet"
        self._parquet = pq.ParquetWriter(self._file, self._schema, **_parquet_options(self._schema))
        self.bytes = 0
        """Bytes of recordings taken so far: about the size of the shard."""

    def write(self, row: Row) -> None:
        """Add a row: a mapping with every column; those that may be null or can be derived may be left out."""
        missing = [column for column in ("seconds", *SOUNDS) if not row.get(column)]
        derived = _derived(row["audio"]) if missing else {}
        whole = {**row, **{column: derived[column] for column in missing}}
        self._pending.append(whole)
        self.bytes += sum(len(sound) for column in SOUNDS for sound in whole[column])
        if len(self._pending) == self._row_group_rows:
            self._flush()

    def close(self) -> ShardInfo:
        """Upload the shard and say what is in it."""
        self._flush()
        self._parquet.close()
        with self._file.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._file.stat().st_size
        path = part_path(self._split, self._index, sha256)
        self._storage.fs.put_file(str(self._file), self._storage.key(f"{self._uri}/{path}"))
        self._folder.cleanup()
        return ShardInfo(path, sum(self._row_groups), self._row_groups, size, sha256)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parquet.close()
        self._folder.cleanup()

    def _flush(self) -> None:
        if not self._pending:
            return
        table = pa.Table.from_pylist([dict(row) for row in self._pending], schema=self._schema)
        self._parquet.write_table(table, row_group_size=self._row_group_rows)
        self._row_groups.append(len(self._pending))
        self._pending = []


def _derived(audio: Iterable[bytes]) -> dict[str, list[Any]]:
    sounds = [decode(sound) for sound in audio]
    columns = zip(*(derive(sound) for sound in sounds), strict=True)
    return {
        "seconds": [sound.seconds for sound in sounds],
        **{name: list(column) for name, column in zip(Derived._fields, columns, strict=True)},
    }


def _parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """FLAC does not compress further, and statistics of it would be copies of recordings."""
    leaves = [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]
    texts = [leaf for leaf in leaves if leaf.split(".")[0] not in SOUNDS]
    return {
        "compression": {leaf: "zstd" if leaf in texts else "none" for leaf in leaves},
        "use_dictionary": [leaf for leaf in texts if leaf != "sample_id"],
        "write_statistics": texts,
    }


def write_corpus(
    storage: Storage,
    corpus_uri: str,
    splits: Mapping[str, Iterable[Row] | Iterable[pa.Table]],
    *,
    inputs: Mapping[str, Any],
    extra: Iterable[pa.Field] = (),
    shard_bytes: int = SHARD_BYTES,
    row_group_rows: int = ROW_GROUP_ROWS,
    rejected: int = 0,
) -> Manifest:
    """Write rows, in the order in which they come, as a corpus that :class:`CorpusStream` reads.

    A corpus that is already there is replaced: it is gone from the first moment, and the new one there at the last.

    Args:
        storage: where it goes.
        corpus_uri: the new corpus.
        splits: rows by split: mappings, or Arrow tables.
        inputs: what the corpus was made from; kept in the manifest.
        extra: columns after those of :data:`SCHEMA`, e.g. ``chosen`` and ``rejected`` of preference pairs.
        shard_bytes: about how large a shard gets.
        row_group_rows: rows of a row group.
        rejected: number of pairs that were left out; kept in the manifest.

    Raises:
        UserError: a split has a name that is none.
    """
    if unknown := sorted(splits.keys() - set(SPLITS)):
        raise UserError(f"split {unknown[0]!r}: choose from {', '.join(SPLITS)}")
    Manifest.remove(storage, corpus_uri)
    writer = _CorpusWriter(storage, corpus_uri, tuple(extra), shard_bytes, row_group_rows)
    infos = {split: writer.split(split, _as_rows(rows)) for split, rows in splits.items()}
    manifest = Manifest(infos, dict(inputs), len(writer.recordings), rejected)
    remove_strays(storage, corpus_uri, manifest)
    manifest.save(storage, corpus_uri)
    return manifest


class _CorpusWriter:
    """Cuts rows into shards and keeps the counts."""

    def __init__(
        self, storage: Storage, corpus_uri: str, extra: tuple[pa.Field, ...], shard_bytes: int, row_group_rows: int
    ) -> None:
        self._storage, self._uri, self._extra = storage, corpus_uri, extra
        self._shard_bytes, self._row_group_rows = shard_bytes, row_group_rows
        self.recordings: set[str] = set()

    def split(self, split: str, rows: Iterator[Row]) -> SplitInfo:
        """Write all rows of a split."""
        shards: list[ShardInfo] = []
        counts = Counts()
        row = next(rows, None)
        while row is not None:
            with self._open(split, len(shards)) as shard:
                while row is not None and shard.bytes < self._shard_bytes:
                    shard.write({**row, "split": split})
                    counts.add([row])
                    self.recordings.update(row["recording_ids"])
                    row = next(rows, None)
                shards.append(shard.close())
        return SplitInfo(shards, counts.as_dict())

    def _open(self, split: str, index: int) -> ShardWriter:
        groups = self._row_group_rows
        return ShardWriter(self._storage, self._uri, split, index, extra=self._extra, row_group_rows=groups)


def _as_rows(rows: Iterable[Row] | Iterable[pa.Table]) -> Iterator[Row]:
    for item in rows:
        if isinstance(item, pa.Table):
            yield from item.to_pylist()
        else:
            yield item


def write_rejects(storage: Storage, corpus_uri: str, rejects: Iterable[Mapping[str, Any]]) -> str:
    """Write ``rejects.parquet`` (also when it is empty) and return its URI."""
    where = _rejects_uri(corpus_uri)
    storage.write_table(where, pa.Table.from_pylist([dict(row) for row in rejects], schema=REJECTS))
    return where


def merge_rejects(
    storage: Storage, corpus_uri: str, grows: bool, origin: str, rejects: Iterable[Reject]
) -> list[dict[str, Any]]:
    """Rows of ``rejects.parquet``: those that other origins left if a corpus ``grows``, and what was left out now."""
    where = _rejects_uri(corpus_uri)
    there = grows and storage.exists(where)
    earlier = storage.read_table(where).to_pylist() if there else []
    now = [{**vars(reject), "origin": origin} for reject in rejects]
    return [row for row in earlier if row.get("origin") != origin] + now


def _rejects_uri(corpus_uri: str) -> str:
    return f"{corpus_uri.rstrip('/')}/rejects.parquet"


def remove_strays(storage: Storage, corpus_uri: str, manifest: Manifest) -> None:
    """Remove parts that an attempt which did not come to its end left behind; nothing else is touched."""
    base = corpus_uri.rstrip("/")
    shards = [shard.path for split in manifest.splits.values() for shard in split.shards]
    ours = {f"{base}/{path}" for path in (*shards, *manifest.catalog)}
    for folder in (*SPLITS, catalog.FOLDER):
        for there in storage.list(f"{base}/{folder}"):
            name = there.rsplit("/", 1)[-1]
            if there not in ours and name.startswith("part-") and name.endswith(".parquet"):
                storage.fs.rm_file(storage.key(there))
