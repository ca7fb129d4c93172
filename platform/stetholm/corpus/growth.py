"""What stands in a corpus already, so that ingesting again does only what is new."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from stetholm.corpus.catalog import read_catalog
from stetholm.corpus.datasource import ShardReader
from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.manifest import Counts, Manifest, SplitInfo
from stetholm.corpus.schema import Entry
from stetholm.corpus.shards import sample_id
from stetholm.corpus.source import Earlier
from stetholm.errors import UserError
from stetholm.storage import Storage

_THREADS = 8


@dataclass(frozen=True)
class Standing:
    """A corpus as an earlier ingest left it; empty where there is none.

    Attributes:
        manifest: None: there is no corpus yet.
        samples: ids of its pairs.
        files: recording id of each file that was read, by (reader, file name, stamp).
        recordings: ids of its recordings.
        splits: of its patients.
    """

    manifest: Manifest | None = None
    samples: frozenset[str] = frozenset()
    files: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    recordings: frozenset[str] = frozenset()
    splits: Earlier = field(default_factory=dict)

    def new_entries(self, entries: Sequence[Entry], folder: AudioFolder, source: str) -> list[Entry]:
        """Those of ``entries`` that are not known to be in the corpus, by files that have not changed since."""
        if not self.files:
            return list(entries)
        names = {name for entry in entries for name in entry.pair.filenames}
        stamps = folder.stamps(names)
        known = {name: self.files.get((source, name, stamp), "") for name, stamp in stamps.items()}
        return [entry for entry in entries if not self._has(entry, known)]

    def _has(self, entry: Entry, known: Mapping[str, str]) -> bool:
        pair = entry.pair
        ids = [known.get(name, "") for name in pair.filenames]
        return all(ids) and sample_id(ids, pair.instruction, pair.response, pair.task) in self.samples


def standing(storage: Storage, corpus_uri: str, manifest: Manifest | None) -> Standing:
    """What ``manifest`` (None: nothing) holds: the catalogue and two columns of every shard are read."""
    if manifest is None:
        return Standing()
    rows = list(read_catalog(storage, corpus_uri, manifest))
    return Standing(
        manifest,
        _sample_ids(storage, corpus_uri, manifest),
        {(row["source"], row["filename"], row["stamp"]): row["recording_id"] for row in rows},
        frozenset(row["recording_id"] for row in rows),
        {(row["dataset"], row["patient"]): row["split"] for row in rows},
    )


def check_growth(manifest: Manifest, inputs: Mapping[str, Any], source: str, grows: bool, corpus_uri: str) -> None:
    """Raise a UserError if what ``inputs`` describe cannot be added to the corpus."""
    old, new = manifest.inputs, inputs
    differing = sorted(key for key in new.keys() - {"sources"} if old.get(key) != new[key])
    if not grows and source in old.get("sources", {}):
        differing.append(source)
    if differing:
        raise UserError(
            f"{corpus_uri} holds a corpus made from other inputs ({', '.join(differing)}): "
            "choose another corpus.uri or run.name"
        )


def grown(
    there: Manifest | None,
    splits: Mapping[str, SplitInfo],
    *,
    inputs: Mapping[str, Any],
    catalog: Iterable[str],
    recordings: int,
    rejected: int,
) -> Manifest:
    """The manifest of a corpus after an ingest: what was there, and what it gained."""
    if there is None:
        return Manifest(dict(splits), dict(inputs), recordings, rejected, list(catalog))
    both = {name: _joined(there.splits.get(name), splits.get(name)) for name in {**there.splits, **splits}}
    sources = {**there.inputs.get("sources", {}), **inputs["sources"]}
    return Manifest(both, {**inputs, "sources": sources}, recordings, rejected, [*there.catalog, *catalog])


def _joined(old: SplitInfo | None, new: SplitInfo | None) -> SplitInfo:
    parts = [part for part in (old, new) if part is not None]
    counts = Counts()
    for part in parts:
        counts.merge(part.counts)
    return SplitInfo([shard for part in parts for shard in part.shards], counts.as_dict())


def _sample_ids(storage: Storage, corpus_uri: str, manifest: Manifest) -> frozenset[str]:
    reader = ShardReader(storage, corpus_uri)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    with ThreadPoolExecutor(_THREADS) as pool:
        return frozenset(sample for rows in pool.map(reader.index, shards) for sample, _ in rows)
