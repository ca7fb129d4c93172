"""What an inspection reads of a corpus: the texts of its pairs, its catalogue and its rejects; no sound."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from stetholm.corpus.catalog import by_recording, read_catalog
from stetholm.corpus.manifest import CorpusError, Manifest, ShardInfo
from stetholm.corpus.parquet import read_parquet, whole
from stetholm.corpus.schema import SPLITS
from stetholm.storage import Storage

PAIR_COLUMNS = (
    "recording_ids", "sampling_rate", "seconds", "instruction", "response", "task", "dataset", "distribution",
    "patient",
)  # fmt: skip
_THREADS = 8

Patient = tuple[str, str]
"""(dataset, patient)."""
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a recording lies first: row ``row`` of a shard, and there at ``position`` among the pair's recordings."""

    shard: str
    """Its path below the corpus."""
    row: int
    position: int


@dataclass(frozen=True)
class Known:
    """What is known of a recording, from the catalogue, else from the pairs about it.

    Attributes:
        recording_id: as in the pairs.
        dataset: whose it is.
        patient: unique within the dataset; None where nothing tells the patients of a comparison apart.
        sampling_rate: Hz.
        seconds: None if unknown.
        filename: as the publisher has it; None if unknown.
        labels: by name; None where the publisher says nothing.
        events: rows ``start``, ``end`` (seconds), ``label``.
    """

    recording_id: str
    dataset: str
    patient: str | None
    sampling_rate: int
    seconds: float | None
    filename: str | None = None
    labels: Mapping[str, str] | None = None
    events: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The file's name, else the beginning of the id."""
        return self.filename or self.recording_id[:16]


@dataclass(frozen=True)
class Survey:
    """A corpus without its sounds.

    Attributes:
        uri: of the corpus.
        manifest: of the corpus.
        pairs: rows of ``PAIR_COLUMNS`` by split, in storage order; only splits that have rows.
        catalogue: its rows; a file that was read twice comes twice.
        rejects: how many pairs were left out, by reason as written.
        places: where each recording lies first.
    """

    uri: str
    manifest: Manifest
    pairs: Mapping[str, list[dict[str, Any]]]
    catalogue: list[dict[str, Any]]
    rejects: Counter[str]
    places: Mapping[str, Place]

    @property
    def splits(self) -> list[str]:
        """Splits that have pairs, in their usual order."""
        return list(self.pairs)

    @cached_property
    def recordings(self) -> dict[str, Known]:
        """All recordings of the pairs, by id."""
        known = {name: _of_catalogue(row) for name, row in by_recording(self.catalogue).items()}
        for rows in self.pairs.values():
            # Pairs about one recording first: they know its patient.
            for row in sorted(rows, key=lambda row: len(row["recording_ids"])):
                for position, name in enumerate(row["recording_ids"]):
                    if name not in known:
                        known[name] = _of_pair(row, position)
        return {name: known[name] for name in self.places}

    @cached_property
    def members(self) -> dict[str, list[Known]]:
        """The recordings that the pairs of each split are about, each once."""
        names = {
            split: dict.fromkeys(name for row in rows for name in row["recording_ids"])
            for split, rows in self.pairs.items()
        }
        return {split: [self.recordings[name] for name in found] for split, found in names.items()}


def read_survey(storage: Storage, corpus_uri: str) -> Survey:
    """Read a corpus's manifest, catalogue, rejects, and the text columns of all its shards.

    Raises:
        CorpusError: there is no corpus, nothing is in it, or a part of it is missing or damaged.
    """
    manifest = Manifest.load(storage, corpus_uri)
    if not manifest.rows:
        raise CorpusError(f"the corpus at {corpus_uri} holds no pairs: ingest it again")
    shards = [(split, shard) for split in SPLITS if split in manifest.splits for shard in manifest.splits[split].shards]
    pairs: dict[str, list[dict[str, Any]]] = {}
    places: dict[str, Place] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        tables = pool.map(lambda item: _texts(storage, corpus_uri, item[1]), shards)
        for (split, shard), table in zip(shards, tables, strict=True):
            rows = table.to_pylist()
            pairs.setdefault(split, []).extend(rows)
            for name, place in _places(shard, rows):
                places.setdefault(name, place)
    catalogue = whole(lambda: list(read_catalog(storage, corpus_uri, manifest)), f"the catalogue of {corpus_uri}")
    return Survey(corpus_uri, manifest, pairs, catalogue, _rejects(storage, corpus_uri), places)


def _texts(storage: Storage, corpus_uri: str, shard: ShardInfo) -> pa.Table:
    def read(file: pq.ParquetFile) -> pa.Table:
        return file.read(columns=list(PAIR_COLUMNS), use_threads=False).select(PAIR_COLUMNS)

    return read_parquet(storage, f"{corpus_uri}/{shard.path}", read)


def _places(shard: ShardInfo, rows: list[dict[str, Any]]) -> Iterator[tuple[str, Place]]:
    for number, row in enumerate(rows):
        for position, name in enumerate(row["recording_ids"]):
            yield name, Place(shard.path, number, position)


def _rejects(storage: Storage, corpus_uri: str) -> Counter[str]:
    where = f"{corpus_uri}/rejects.parquet"
    if not storage.exists(where):
        return Counter()
    table = whole(lambda: pq.read_table(io.BytesIO(storage.read_bytes(where)), columns=["reason"]), where)
    return Counter(table["reason"].to_pylist())


def _of_catalogue(row: Mapping[str, Any]) -> Known:
    return Known(
        row["recording_id"], row["dataset"], row["patient"], row["sampling_rate"], row["seconds"], row["filename"],
        row["labels"] or None, tuple(row["events"] or ()),
    )  # fmt: skip


def _of_pair(row: Mapping[str, Any], position: int) -> Known:
    seconds = row["seconds"][position] if row["seconds"] else None
    name = row["recording_ids"][position]
    return Known(name, row["dataset"], _patient(row, position), row["sampling_rate"][position], seconds)


def _patient(row: Mapping[str, Any], position: int) -> str | None:
    patients = patients_of(row)
    if len(patients) == 1:
        return patients[0]
    return patients[position] if len(patients) == len(row["recording_ids"]) else None


def patients_of(row: Mapping[str, Any]) -> list[str]:
    """The patients of a pair: those of a comparison are joined with ``+``."""
    text: str = row["patient"]
    return text.split("+") if len(row["recording_ids"]) > 1 else [text]
