"""The catalogue of a corpus: a row a recording, with its labels and events. Shards hold pairs; this holds the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from stetholm.corpus.manifest import Manifest, part_path
from stetholm.storage import Storage
from stetholm.storage.store import parquet_bytes

FOLDER = "recordings"
SCHEMA = pa.schema(
    [
        ("recording_id", pa.string()),  # SHA-256 of the publisher's file
        ("source", pa.string()),  # the reader's name
        ("filename", pa.string()),
        ("stamp", pa.string()),  # changes when the file does
        ("sampling_rate", pa.int32()),  # Hz
        ("seconds", pa.float32()),
        ("dataset", pa.string()),
        ("kind", pa.string()),
        ("patient", pa.string()),
        ("site", pa.string()),
        ("device", pa.string()),
        ("licence", pa.string()),
        ("split", pa.string()),
        ("distribution", pa.string()),
        ("labels", pa.map_(pa.string(), pa.string())),
        (
            "events",
            pa.list_(pa.struct([("start", pa.float64()), ("end", pa.float64()), ("label", pa.string())])),
        ),
    ]
)


def write_part(storage: Storage, corpus_uri: str, number: int, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write the recordings of ingest ``number`` (from 0); where they lie below the corpus URI."""
    data = parquet_bytes(pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA))
    path = part_path(FOLDER, number, hashlib.sha256(data).hexdigest())
    storage.write_bytes(f"{corpus_uri}/{path}", data)
    return path


def read_catalog(storage: Storage, corpus_uri: str, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Every recording of a corpus as a row of :data:`SCHEMA`; ``labels`` is a dict. One file read twice comes twice."""
    for path in manifest.catalog:
        table = storage.read_table(f"{corpus_uri.rstrip('/')}/{path}")
        yield from table.to_pylist(maps_as_pydicts="strict")


def by_recording(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The row of each recording: of several the latest, but one that has labels or events rather than one that has not.

    A recording that two sources share is described by that which knows what it is.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        there = found.get(row["recording_id"])
        if there is None or _described(row) or not _described(there):
            found[row["recording_id"]] = row
    return found


def _described(row: Mapping[str, Any]) -> bool:
    return bool(row["labels"] or row["events"])
