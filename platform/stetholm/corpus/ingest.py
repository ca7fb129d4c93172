"""Ingest: recordings and pairs of a source become Parquet shards with a manifest. Run by ``jobs/ingest.py``.

The driver reads the pairs (text only); Ray Data tasks read, check and encode the recordings; Ray tasks write the
shards. ``manifest.json`` comes last: until it is there, there is no corpus.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from stetholm.corpus import manifest as manifests
from stetholm.corpus.manifest import Counts, Manifest, ShardInfo, SplitInfo
from stetholm.corpus.recordings import Recording, Recordings, encode_recordings
from stetholm.corpus.schema import SPLITS, Pair
from stetholm.corpus.shards import ShardWriter, remove_strays, sample_id, shard_path, write_rejects
from stetholm.corpus.sources import Source, reader_of, source_name
from stetholm.corpus.stethobench import Entry, Reject
from stetholm.errors import UserError
from stetholm.progress import Progress
from stetholm.ray_session import ray_session
from stetholm.runs import corpus_uri, finished, record
from stetholm.settings import Settings
from stetholm.storage import Storage

JOB = "ingest"
_REASONS_SHOWN = 3


@dataclass(frozen=True)
class Sample:
    """A pair whose recordings all decode."""

    sample_id: str
    pair: Pair
    recordings: tuple[Recording, ...]

    @property
    def size(self) -> int:
        """Bytes of its recordings as FLAC."""
        return sum(recording.bytes for recording in self.recordings)

    def row(self, audio: Sequence[bytes]) -> dict[str, Any]:
        """Its row in a shard."""
        return {
            **self.pair.model_dump(exclude={"filenames"}),
            "sample_id": self.sample_id,
            "recording_ids": [recording.recording_id for recording in self.recordings],
            "audio": audio,
            "sampling_rate": [recording.rate for recording in self.recordings],
            "seconds": [recording.seconds for recording in self.recordings],
            "patient": patient_of(self.pair, [recording.recording_id for recording in self.recordings]),
        }


@dataclass(frozen=True)
class ShardPlan:
    """The samples of one shard, in order."""

    split: str
    path: str
    samples: list[Sample]


def ingest(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Make the corpus of the settings, unless this run or another one has made it from the same inputs.

    Returns:
        ``output`` (the corpus URI), ``recordings``, ``pairs`` and ``rejected``.

    Raises:
        UserError: the source is not as the settings say, another corpus lies at the URI, or more than
            ``corpus.max_reject_fraction`` of the pairs had to be left out.
    """
    uri = corpus_uri(settings, storage)
    made_from = _inputs(settings, storage)
    inputs = {"corpus": uri, **made_from}
    done = finished(settings, storage, JOB, inputs)
    there = Manifest.load(storage, uri) if storage.exists(manifests.uri(uri)) else None
    if there is not None and there.inputs != made_from:
        raise UserError(f"{uri} holds a corpus made from other inputs: choose another corpus.uri or run.name")
    if done is None or there is None:
        there = there or _make(settings, storage, uri, made_from)
        record(settings, storage, JOB, _result(uri, there), inputs)
    return _result(uri, there)


def _result(uri: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "output": uri,
        "recordings": manifest.recordings,
        "pairs": manifest.rows,
        "rejected": manifest.rejected,
    }


def _inputs(settings: Settings, storage: Storage) -> dict[str, Any]:
    """What decides the content of the corpus. The recordings themselves are not read for it."""
    corpus = settings.corpus
    return {
        "source": source_name(settings),
        **reader_of(settings).inputs(settings, storage),
        "seed": settings.run.seed,
        "shard_bytes": corpus.shard_bytes,
        "row_group_rows": corpus.row_group_rows,
        "audio": settings.audio.model_dump(),
    }


def _make(settings: Settings, storage: Storage, uri: str, inputs: dict[str, Any]) -> Manifest:
    with ray_session(), tempfile.TemporaryDirectory(prefix="stetholm-ingest-") as scratch:
        source = _open_source(settings, storage, Path(scratch))
        entries, rejects = _read_entries(source)
        recordings = _encode(entries, source, settings)
        samples, more = resolve(entries, recordings)
        rejects += more
        where = write_rejects(storage, uri, [(each.source, each.line, each.reason) for each in rejects])
        check_rejects(rejects, len(samples), settings.corpus.max_reject_fraction, where)
        splits = _write(settings, storage, uri, plan_shards(samples, settings), recordings)
    distinct = {recording.recording_id for sample in samples for recording in sample.recordings}
    manifest = Manifest(splits, inputs, len(distinct), len(rejects))
    remove_strays(storage, uri, manifest)
    manifest.save(storage, uri)
    return manifest


def _open_source(settings: Settings, storage: Storage, scratch: Path) -> Source:
    if source_name(settings) != "synthetic":
        return reader_of(settings).open(settings, storage, scratch, lambda done, total: None)
    with Progress("synthesise", None, "recordings") as progress:
        return reader_of(settings).open(settings, storage, scratch, lambda done, total: progress.update(done, of=total))


def _read_entries(source: Source) -> tuple[list[Entry], list[Reject]]:
    entries: list[Entry] = []
    rejects: list[Reject] = []
    for item in source.entries():
        if isinstance(item, Entry):
            entries.append(item)
        else:
            rejects.append(item)
    return entries, rejects


def _encode(entries: Sequence[Entry], source: Source, settings: Settings) -> Recordings:
    names = list(dict.fromkeys(name for entry in entries for name in entry.pair.filenames))
    with Progress("ingest", len(names), "recordings") as progress:
        return encode_recordings(names, source.folder, settings.audio, progress.update)


def resolve(entries: Iterable[Entry], recordings: Recordings) -> tuple[list[Sample], list[Reject]]:
    """Join pairs and recordings; a pair that lacks one, or says the same as an earlier pair, is left out."""
    samples: list[Sample] = []
    rejects: list[Reject] = []
    first: dict[tuple[str, ...], Entry] = {}
    for entry in entries:
        pair = entry.pair
        if bad := next((name for name in pair.filenames if name in recordings.bad), None):
            rejects.append(Reject(entry.source, entry.line, f"recording {bad}: {recordings.bad[bad]}"))
            continue
        found = tuple(recordings.good[name] for name in pair.filenames)
        ids = [recording.recording_id for recording in found]
        earlier = first.setdefault((*ids, pair.instruction, pair.response), entry)
        if earlier is not entry:
            rejects.append(Reject(entry.source, entry.line, f"duplicate of {earlier.source}, line {earlier.line}"))
            continue
        samples.append(Sample(sample_id(ids, pair.instruction, pair.response, pair.task), pair, found))
    return samples, rejects


def patient_of(pair: Pair, recording_ids: Sequence[str]) -> str:
    """The pair's patient, else what an ICBHI file name says (``101_1b1_…``), else the recording: never shared wrongly.

    Several patients of a comparison are joined with ``+``.
    """
    if pair.patient:
        return pair.patient
    names = [Path(name).name for name in pair.filenames]
    icbhi = [re.match(r"(\d{3})_", name) if pair.dataset.lower().startswith("icbhi") else None for name in names]
    patients = [match[1] if match else recording for match, recording in zip(icbhi, recording_ids, strict=True)]
    return "+".join(dict.fromkeys(patients))


def check_rejects(rejects: Sequence[Reject], accepted: int, limit: float, where: str) -> None:
    """Raise a UserError if too many pairs, or all, had to be left out."""
    total = accepted + len(rejects)
    if accepted and len(rejects) <= limit * total:
        return
    if not total:
        raise UserError("the source holds no pairs")
    shown = "; ".join(f"{each.source}, line {each.line}: {each.reason}" for each in rejects[:_REASONS_SHOWN])
    raise UserError(
        f"{len(rejects)} of {total} pairs are rejected, more than corpus.max_reject_fraction = {limit:g} allows: "
        f"{shown}{'; …' if len(rejects) > _REASONS_SHOWN else ''} (all of them: {where})"
    )


def plan_shards(samples: Sequence[Sample], settings: Settings) -> list[ShardPlan]:
    """Shuffle each split (seeded) and cut it into shards of about ``corpus.shard_bytes``."""
    plans = []
    for number, split in enumerate(SPLITS):
        chosen = [sample for sample in samples if sample.pair.split == split]
        order = np.random.default_rng([settings.run.seed, number]).permutation(len(chosen))
        cuts = _cut((chosen[index] for index in order), settings.corpus.shard_bytes)
        plans += [ShardPlan(split, shard_path(split, index), part) for index, part in enumerate(cuts)]
    return plans


def _cut(samples: Iterable[Sample], shard_bytes: int) -> Iterator[list[Sample]]:
    part: list[Sample] = []
    size = 0
    for sample in samples:
        part.append(sample)
        size += sample.size
        if size >= shard_bytes:
            yield part
            part, size = [], 0
    if part:
        yield part


def _write(
    settings: Settings, storage: Storage, uri: str, plans: Sequence[ShardPlan], recordings: Recordings
) -> dict[str, SplitInfo]:
    shards: dict[str, ShardInfo] = {}
    with Progress("shards", len(plans), "shards") as progress:
        for info in _write_shards(settings, storage, uri, plans, recordings):
            shards[info.path] = info
            progress.update(len(shards))
    splits = {}
    for split in dict.fromkeys(plan.split for plan in plans):
        mine = [plan for plan in plans if plan.split == split]
        counts = Counts()
        counts.add(sample.pair.model_dump(include=set(Counts.COLUMNS)) for plan in mine for sample in plan.samples)
        splits[split] = SplitInfo([shards[plan.path] for plan in mine], counts.as_dict())
    return splits


def _write_shards(
    settings: Settings, storage: Storage, uri: str, plans: Sequence[ShardPlan], recordings: Recordings
) -> Iterator[ShardInfo]:
    """Write the shards, as many at a time as there are CPUs; in the order in which they are done."""
    at_a_time = max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: list[ray.ObjectRef[ShardInfo]] = []
    for plan in plans:
        if len(running) >= at_a_time:
            done, running = ray.wait(running, num_returns=1)
            yield ray.get(done[0])
        needed = sorted({recording.block for sample in plan.samples for recording in sample.recordings})
        blocks = {block: recordings.blocks[block] for block in needed}
        running.append(_write_shard.remote(storage, uri, plan, blocks, settings.corpus.row_group_rows))
    for ref in running:
        yield ray.get(ref)


@ray.remote(num_cpus=1)
def _write_shard(
    storage: Storage, uri: str, plan: ShardPlan, blocks: Mapping[int, ray.ObjectRef[Any]], row_group_rows: int
) -> ShardInfo:
    audio = _fetch({recording for sample in plan.samples for recording in sample.recordings}, blocks)
    with ShardWriter(storage, uri, plan.path, row_group_rows=row_group_rows) as writer:
        for sample in plan.samples:
            writer.write(sample.row([audio[recording.block, recording.row] for recording in sample.recordings]))
        return writer.close()


def _fetch(recordings: Iterable[Recording], blocks: Mapping[int, ray.ObjectRef[Any]]) -> dict[tuple[int, int], bytes]:
    """FLAC bytes of the recordings, copied block by block so that no whole block stays in use."""
    wanted: dict[int, list[int]] = {}
    for recording in recordings:
        wanted.setdefault(recording.block, []).append(recording.row)
    return {
        (block, row): column[row].as_py()
        for block, rows in wanted.items()
        for column in [ray.get(blocks[block])["flac"]]
        for row in rows
    }
