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
from stetholm.corpus.schema import Entry, Pair
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

    def known(self, entries: Iterable[Entry], folder: AudioFolder, source: str) -> dict[str, str]:
        """Recording id of each file of ``entries`` that an earlier ingest has read, and that has not changed since."""
        if not self.files:
            return {}
        stamps = folder.stamps({name for entry in entries for name in entry.pair.filenames})
        keys = ((name, self.files.get((source, name, stamp))) for name, stamp in stamps.items())
        return {name: found for name, found in keys if found is not None}

    def to_encode(self, entries: Iterable[Entry], known: Mapping[str, str]) -> list[str]:
        """Files of the entries that are not settled: those in the corpus are, and those that repeat a settled one."""
        names: dict[str, None] = {}
        settled: set[tuple[str, ...]] = set()
        for entry in entries:
            pair = entry.pair
            ids = [known.get(name, "") for name in pair.filenames]
            content = (*ids, pair.instruction, pair.response)
            if all(ids) and (content in settled or pair_id(pair, ids) in self.samples):
                settled.add(content)
            else:
                names.update(dict.fromkeys(pair.filenames))
        return list(names)


def pair_id(pair: Pair, recording_ids: Sequence[str]) -> str:
    """Id of the sample that a pair makes."""
    return sample_id(recording_ids, pair.instruction, pair.response, pair.task)


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
    there = old.get("sources", {}).get(source)
    if not grows and there not in (None, new["sources"][source]):
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
        return frozenset(row.sample_id for rows in pool.map(reader.index, shards) for row in rows)
