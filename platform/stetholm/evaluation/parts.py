"""Vectors by key in Parquet parts below one URI: what a job that goes on has computed already."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stetholm.evaluation.generation import FLUSH_SECONDS, write_parquet
from stetholm.storage import Storage

Vector = NDArray[np.float32]


class VectorStore:
    """Float vectors by key. One process writes; the URI must belong to what the vectors depend on."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage, self._uri = storage, uri
        self._parts = 0
        self._pending: dict[str, Vector] = {}
        self._flushed = time.monotonic()

    def load(self) -> dict[str, Vector]:
        """All that is there."""
        found: dict[str, Vector] = {}
        uris = self._storage.list(self._uri)
        for uri in uris:
            table = pq.read_table(pa.BufferReader(self._storage.read_bytes(uri)))
            found.update(zip(table["key"].to_pylist(), vectors(table["vector"]), strict=True))
        self._parts = len(uris)
        return found

    def add(self, found: Mapping[str, Vector]) -> None:
        """Keep vectors; they are written every ``FLUSH_SECONDS``."""
        self._pending.update(found)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has come since the last part."""
        if self._pending:
            table = pa.table({"key": list(self._pending), "vector": column(list(self._pending.values()))})
            write_parquet(self._storage, f"{self._uri}/part-{self._parts:05d}.parquet", table)
            self._parts, self._pending = self._parts + 1, {}
        self._flushed = time.monotonic()

    def remove(self) -> None:
        """Delete the parts, once what they hold is kept elsewhere."""
        self._storage.remove_dir(self._uri)


def column(rows: list[Vector]) -> pa.Array:
    """Vectors as a list column."""
    return pa.array(rows, pa.list_(pa.float32()))


def vectors(rows: pa.ChunkedArray) -> list[Vector]:
    """A list column as vectors."""
    return [
        np.asarray(values.values.to_numpy(zero_copy_only=False), np.float32)
        for chunk in rows.chunks
        for values in chunk
    ]
