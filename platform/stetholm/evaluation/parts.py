"""Values by key in Parquet parts below one URI: what a job that goes on has made already."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stetholm.storage import Storage

Value = TypeVar("Value")
Vector = NDArray[np.float32]


class PartStore(ABC, Generic[Value]):
    """Values by key. Several processes may write; the URI must belong to all that the values depend on."""

    flush_seconds: ClassVar[float] = 20.0
    """A killed job loses what it has made within so many seconds at most."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage, self._uri = storage, uri
        self._pending: dict[str, Value] = {}
        self._flushed = time.monotonic()

    @abstractmethod
    def columns(self, values: Sequence[Value]) -> dict[str, pa.Array]:
        """The columns that keep ``values``, beside ``key``."""

    @abstractmethod
    def values(self, table: pa.Table) -> Sequence[Value]:
        """What :meth:`columns` has kept."""

    def load(self) -> dict[str, Value]:
        """All that is there."""
        found: dict[str, Value] = {}
        for uri in self._storage.list(self._uri):
            table = self._storage.read_table(uri)
            found.update(zip(table["key"].to_pylist(), self.values(table), strict=True))
        return found

    def add(self, found: Mapping[str, Value]) -> None:
        """Keep values; they are written every ``flush_seconds`` of work, or by :meth:`flush`."""
        self._pending.update(found)
        if time.monotonic() - self._flushed > self.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write what has come since the last part."""
        if self._pending:
            table = pa.table({"key": list(self._pending), **self.columns(list(self._pending.values()))})
            self._storage.write_table(f"{self._uri}/part-{secrets.token_hex(16)}.parquet", table)
            self._pending = {}
        self._flushed = time.monotonic()

    def remove(self) -> None:
        """Delete the parts, once what they hold is kept elsewhere."""
        self._storage.remove_dir(self._uri)


class VectorStore(PartStore[Vector]):
    """Float vectors by key."""

    def columns(self, values: Sequence[Vector]) -> dict[str, pa.Array]:
        """The vectors."""
        return {"vector": column(values)}

    def values(self, table: pa.Table) -> list[Vector]:
        """The vectors of a part."""
        return vectors(table["vector"])


def column(rows: Sequence[Vector]) -> pa.Array:
    """Vectors as a list column."""
    return pa.array(rows, pa.list_(pa.float32()))


def vectors(rows: pa.ChunkedArray) -> list[Vector]:
    """A list column as vectors."""
    return [
        np.asarray(values.values.to_numpy(zero_copy_only=False), np.float32)
        for chunk in rows.chunks
        for values in chunk
    ]
