"""Verdicts of a judge on storage, so that none is paid for twice."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from stetholm.storage import Storage

FLUSH_SECONDS = 5.0
"""A killed job loses what it has been told, and paid, within so many seconds at most."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one answer.

    Attributes:
        correct: None: unjudged.
        score: 0 to 1; None: unjudged.
        reason: the judge's, or why there is no verdict.
    """

    correct: bool | None
    score: float | None
    reason: str = ""


class VerdictStore:
    """Verdicts by key in Parquet parts below one URI, which belongs to one judge and prompt. Several may write."""

    SCHEMA = pa.schema(
        [("key", pa.string()), ("correct", pa.bool_()), ("score", pa.float64()), ("reason", pa.string())]
    )

    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage, self._uri = storage, uri
        self._pending: dict[str, Verdict] = {}
        self._flushed = time.monotonic()

    def load(self) -> dict[str, Verdict]:
        """All that is there."""
        found: dict[str, Verdict] = {}
        for uri in self._storage.list(self._uri):
            for row in pq.read_table(pa.BufferReader(self._storage.read_bytes(uri))).to_pylist():
                found[row["key"]] = Verdict(row["correct"], row["score"], row["reason"])
        return found

    def add(self, key: str, verdict: Verdict) -> None:
        """Keep one; it is written within ``FLUSH_SECONDS`` of work, or by ``flush``."""
        self._pending[key] = verdict
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has come since the last part."""
        if self._pending:
            rows = [{"key": key, **vars(verdict)} for key, verdict in self._pending.items()]
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(rows, schema=self.SCHEMA), sink, compression="zstd")
            self._storage.write_bytes(f"{self._uri}/part-{uuid.uuid4().hex}.parquet", sink.getvalue().to_pybytes())
            self._pending = {}
        self._flushed = time.monotonic()
