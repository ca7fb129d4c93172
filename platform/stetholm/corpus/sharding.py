"""Ingest, second half: samples are shuffled, cut into shards, and written by Ray tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from stetholm.corpus.encode import Encoded, Encodings
from stetholm.corpus.manifest import Counts, Manifest, ShardInfo, SplitInfo
from stetholm.corpus.schema import SPLITS, Pair
from stetholm.corpus.shards import SOUNDS, ShardWriter
from stetholm.progress import Progress
from stetholm.settings import Settings
from stetholm.storage import Storage


@dataclass(frozen=True)
class Sample:
    """A pair whose recordings all decode."""

    sample_id: str
    pair: Pair
    recordings: tuple[Encoded, ...]
    patient: str

    @property
    def size(self) -> int:
        """Bytes of its recordings."""
        return sum(recording.bytes for recording in self.recordings)

    def row(self, sounds: Mapping[tuple[int, int], Mapping[str, bytes]]) -> dict[str, Any]:
        """Its row in a shard, with the bytes of its recordings by block and row."""
        mine = [sounds[recording.block, recording.row] for recording in self.recordings]
        return {
            **self.pair.model_dump(exclude={"filenames"}),
            **{column: [sound[column] for sound in mine] for column in SOUNDS},
            "sample_id": self.sample_id,
            "recording_ids": [recording.recording_id for recording in self.recordings],
            "sampling_rate": [recording.rate for recording in self.recordings],
            "seconds": [recording.seconds for recording in self.recordings],
            "patient": self.patient,
        }


@dataclass(frozen=True)
class ShardPlan:
    """The samples of one shard, in order."""

    split: str
    index: int
    samples: list[Sample]


def plan_shards(samples: Sequence[Sample], settings: Settings, there: Manifest | None) -> list[ShardPlan]:
    """Shuffle each split (seeded) and cut it into shards of about ``corpus.shard_bytes``, behind those there are."""
    plans = []
    for number, split in enumerate(SPLITS):
        chosen = [sample for sample in samples if sample.pair.split == split]
        first = len(there.splits[split].shards) if there and split in there.splits else 0
        order = np.random.default_rng([settings.run.seed, number, first]).permutation(len(chosen))
        cuts = _cut((chosen[index] for index in order), settings.corpus.shard_bytes)
        plans += [ShardPlan(split, index, part) for index, part in enumerate(cuts, start=first)]
    return plans


def write_shards(
    settings: Settings, storage: Storage, uri: str, plans: Sequence[ShardPlan], encodings: Encodings
) -> dict[str, SplitInfo]:
    """Write the shards; what each split gains."""
    shards: dict[tuple[str, int], ShardInfo] = {}
    with Progress("shards", len(plans), "shards") as progress:
        for plan, info in _write_all(settings, storage, uri, plans, encodings):
            shards[plan.split, plan.index] = info
            progress.update(len(shards))
    splits = {}
    for split in dict.fromkeys(plan.split for plan in plans):
        mine = [plan for plan in plans if plan.split == split]
        counts = Counts()
        counts.add(sample.pair.model_dump(include=set(Counts.COLUMNS)) for plan in mine for sample in plan.samples)
        splits[split] = SplitInfo([shards[split, plan.index] for plan in mine], counts.as_dict())
    return splits


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


def _write_all(
    settings: Settings, storage: Storage, uri: str, plans: Sequence[ShardPlan], encodings: Encodings
) -> Iterator[tuple[ShardPlan, ShardInfo]]:
    """Write the shards, as many at a time as there are CPUs; in the order in which they are done."""
    at_a_time = max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[ray.ObjectRef[ShardInfo], ShardPlan] = {}
    for plan in plans:
        if len(running) >= at_a_time:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done), ray.get(done)
        needed = sorted({recording.block for sample in plan.samples for recording in sample.recordings})
        blocks = {block: encodings.blocks[block] for block in needed}
        running[_write_shard.remote(storage, uri, plan, blocks, settings.corpus.row_group_rows)] = plan
    for ref, plan in running.items():
        yield plan, ray.get(ref)


@ray.remote(num_cpus=1)
def _write_shard(
    storage: Storage, uri: str, plan: ShardPlan, blocks: Mapping[int, ray.ObjectRef[Any]], row_group_rows: int
) -> ShardInfo:
    sounds = _fetch({recording for sample in plan.samples for recording in sample.recordings}, blocks)
    with ShardWriter(storage, uri, plan.split, plan.index, row_group_rows=row_group_rows) as writer:
        for sample in plan.samples:
            writer.write(sample.row(sounds))
        return writer.close()


def _fetch(
    recordings: Iterable[Encoded], blocks: Mapping[int, ray.ObjectRef[Any]]
) -> dict[tuple[int, int], dict[str, bytes]]:
    """Bytes of the recordings, copied block by block so that no whole block stays in use."""
    wanted: dict[int, list[int]] = {}
    for recording in recordings:
        wanted.setdefault(recording.block, []).append(recording.row)
    found = {}
    for block, rows in wanted.items():
        table = ray.get(blocks[block]).select(SOUNDS)
        for row in rows:
            found[block, row] = {column: table[column][row].as_py() for column in SOUNDS}
    return found
