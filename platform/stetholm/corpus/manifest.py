"""``manifest.json``: what a corpus holds. Written last, so that a half-written corpus is never visible."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from stetholm.errors import UserError
from stetholm.storage import Storage

VERSION = 3
NAME = "manifest.json"


class CorpusError(UserError):
    """A corpus that is not there, or not as a reader needs it."""


@dataclass(frozen=True)
class ShardInfo:
    """One Parquet file of a split."""

    path: str
    """Below the corpus URI, e.g. ``train/part-00000-d3adbeef.parquet``."""
    rows: int
    row_groups: list[int]
    """Rows of each row group."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitInfo:
    """The shards of one split and how many rows they hold, by task, dataset and distribution."""

    shards: list[ShardInfo]
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """``{"task": {"Report": 12, ...}, "dataset": ..., "distribution": ...}``."""

    @property
    def rows(self) -> int:
        """Rows of the split."""
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """What a corpus holds and what it was made from."""

    splits: dict[str, SplitInfo]
    inputs: dict[str, Any]
    """What it was made from: two corpora with the same inputs are the same."""
    recordings: int
    """Distinct recordings in it."""
    rejected: int
    """Pairs that were left out; ``rejects.parquet`` says why."""
    catalog: list[str] = field(default_factory=list)
    """Parquet files below the corpus URI with a row a recording: see :mod:`stetholm.corpus.catalog`."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: int = VERSION

    @property
    def rows(self) -> int:
        """Rows of all splits."""
        return sum(split.rows for split in self.splits.values())

    @property
    def sha256(self) -> str:
        """SHA-256 of ``manifest.json``; the lineage of a checkpoint names it."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def split(self, name: str) -> SplitInfo:
        """One split.

        Raises:
            CorpusError: it has no such split, or nothing in it.
        """
        if name not in self.splits or not self.splits[name].rows:
            there = ", ".join(f"{key} ({info.rows})" for key, info in self.splits.items() if info.rows)
            raise CorpusError(f"the corpus has no rows in split {name!r}; it has: {there or 'nothing'}")
        return self.splits[name]

    def _text(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    def save(self, storage: Storage, corpus_uri: str) -> None:
        """Write ``<corpus_uri>/manifest.json``. Call it last: from here on the corpus is there."""
        storage.write_text(uri(corpus_uri), self._text())

    @staticmethod
    def remove(storage: Storage, corpus_uri: str) -> None:
        """Take a corpus out of sight, before its shards are written anew."""
        if storage.exists(uri(corpus_uri)):
            storage.fs.rm_file(storage.key(uri(corpus_uri)))

    @classmethod
    def load(cls, storage: Storage, corpus_uri: str) -> Manifest:
        """Read ``<corpus_uri>/manifest.json``.

        Raises:
            CorpusError: there is none, or it is not one that this version reads.
        """
        where = uri(corpus_uri)
        if not storage.exists(where):
            raise CorpusError(f"no corpus at {corpus_uri}: run jobs/ingest.py first or set corpus.uri")
        try:
            raw = json.loads(storage.read_text(where))
            if raw.pop("version") != VERSION:
                raise CorpusError(
                    f"{where} is of another version of the platform: ingest the corpus again, to another corpus.uri"
                )
            return cls(**{**raw, "splits": {name: _split(info) for name, info in raw["splits"].items()}})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorpusError(f"{where} is not a corpus manifest ({error}): ingest the corpus again") from error


def uri(corpus_uri: str) -> str:
    """Where a corpus's manifest lies."""
    return f"{corpus_uri.rstrip('/')}/{NAME}"


def _split(raw: Mapping[str, Any]) -> SplitInfo:
    return SplitInfo([ShardInfo(**shard) for shard in raw["shards"]], raw["counts"])


def part_path(folder: str, index: int, sha256: str) -> str:
    """Where part ``index`` of ``folder`` (a split) with this content lies below the corpus URI.

    Two contents never have one name, so of two that write none overwrites what the other one's manifest names.
    """
    return f"{folder}/part-{index:05d}-{sha256[:8]}.parquet"


class Counts:
    """Counts the rows of a split by task, dataset and distribution."""

    COLUMNS = ("task", "dataset", "distribution")

    def __init__(self) -> None:
        self._counters: dict[str, Counter[str]] = {column: Counter() for column in self.COLUMNS}

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count ``rows``."""
        for row in rows:
            for column, counter in self._counters.items():
                counter[row[column]] += 1

    def merge(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Add what another one has counted."""
        for column, counted in counts.items():
            self._counters[column].update(counted)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Counts by column and value, sorted by value."""
        return {column: dict(sorted(counter.items())) for column, counter in self._counters.items()}
