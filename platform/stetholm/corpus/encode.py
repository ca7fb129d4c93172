"""Ingest, first half: every distinct recording is read, checked, decoded and encoded once, in Ray Data tasks.

The bytes stay in Ray's object store (which spills to disk), the driver keeps a short record of each. That serves
corpora whose new recordings fit the cluster's object store and spill disks: the published one takes a few gigabytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from stetholm.audio.decode import AudioError, decode, encode_flac
from stetholm.corpus.datasource import quiet
from stetholm.corpus.derived import Derived, derive
from stetholm.corpus.folder import AudioFolder, RecordingError
from stetholm.corpus.shards import SOUNDS
from stetholm.settings import AudioSettings

FILES_PER_TASK = 32
BLOCK_BYTES = 16 * 2**20

_SCHEMA = pa.schema(
    [
        ("filename", pa.string()),
        ("recording_id", pa.string()),
        ("audio", pa.binary()),
        *((name, pa.binary()) for name in Derived._fields),
        ("rate", pa.int32()),
        ("seconds", pa.float32()),
        ("bytes", pa.int64()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Encoded:
    """A recording that decodes, and where its bytes are."""

    recording_id: str
    """SHA-256 of the file."""
    rate: int
    """Hz."""
    seconds: float
    bytes: int
    """Of the FLAC and what follows from it."""
    block: int
    """Index into :attr:`Encodings.blocks`."""
    row: int
    """Row of that block."""


@dataclass(frozen=True)
class Encodings:
    """What became of every file: a recording, or the reason why not."""

    good: dict[str, Encoded]
    bad: dict[str, str]
    blocks: list[ray.ObjectRef[Any]]
    """Arrow tables with the columns of ``SOUNDS``."""


@dataclass(frozen=True)
class EncodeRecordings:
    """The Ray Data task: file names in, bytes or a reason out, in pieces of about ``BLOCK_BYTES``."""

    folder: AudioFolder
    limits: AudioSettings

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Encode the recordings named in the column ``filename``."""
        rows: list[dict[str, Any]] = []
        size = 0
        for name in batch["filename"].to_pylist():
            rows.append(self.encode(name))
            size += rows[-1]["bytes"]
            if size >= BLOCK_BYTES:
                yield pa.Table.from_pylist(rows, schema=_SCHEMA)
                rows, size = [], 0
        if rows:
            yield pa.Table.from_pylist(rows, schema=_SCHEMA)

    def encode(self, name: str) -> dict[str, Any]:
        """One recording as a row of the result."""
        try:
            data = self.folder.read(name, self.limits.max_bytes)
            sound = decode(data, self.limits)
            flac = encode_flac(sound)
            derived = derive(sound)
        except (RecordingError, AudioError) as error:
            return {"filename": name, "bytes": 0, "reason": str(error)}
        return {
            "filename": name,
            "recording_id": hashlib.sha256(data).hexdigest(),
            "audio": flac,
            **derived._asdict(),
            "rate": sound.rate,
            "seconds": len(sound.samples) / sound.rate,
            "bytes": len(flac) + sum(map(len, derived)),
        }


def encode_recordings(
    names: Sequence[str], folder: AudioFolder, limits: AudioSettings, report: Callable[[int], None]
) -> Encodings:
    """Encode the recordings ``names`` below ``folder``; ``report`` is told how many are done."""
    good: dict[str, Encoded] = {}
    bad: dict[str, str] = {}
    blocks: list[ray.ObjectRef[Any]] = []
    if not names:
        return Encodings(good, bad, blocks)
    for bundle in _pipeline(names, folder, limits).iter_internal_ref_bundles():
        for ref in bundle.block_refs:
            records: list[dict[str, Any]] = ray.get(_without_audio.remote(ref))
            for row, record in enumerate(records):
                _file(record, len(blocks), row, good, bad)
            blocks.append(ref)
        report(len(good) + len(bad))
    return Encodings(good, bad, blocks)


def _pipeline(names: Sequence[str], folder: AudioFolder, limits: AudioSettings) -> ray.data.Dataset:
    table = pa.table({"filename": pa.array(names, pa.string())})
    tables = [table.slice(start, FILES_PER_TASK) for start in range(0, len(names), FILES_PER_TASK)]
    files = quiet(ray.data.from_arrow(tables), preserve_order=True)
    return files.map_batches(
        EncodeRecordings(folder, limits).__call__,
        batch_size=None,
        batch_format="pyarrow",
        **(_here() if folder.local else {}),
    )


def _here() -> dict[str, Any]:
    """Keep tasks on this machine: no other one can read its disk."""
    node = ray.get_runtime_context().get_node_id()
    cpus = next(n["Resources"].get("CPU", 0) for n in ray.nodes() if n["NodeID"] == node)
    # A head node may be declared without CPUs to keep work off it; its disk can be read nowhere else all the same.
    return {
        "label_selector": {"ray.io/node-id": node},
        "num_cpus": 1 if cpus >= 1 else 0,
    }


@ray.remote(num_cpus=0)
def _without_audio(block: pa.Table) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = block.drop_columns(list(SOUNDS)).to_pylist()
    return records


def _file(record: dict[str, Any], block: int, row: int, good: dict[str, Encoded], bad: dict[str, str]) -> None:
    name = record["filename"]
    if record["reason"] is not None:
        bad[name] = record["reason"]
    else:
        good[name] = Encoded(record["recording_id"], record["rate"], record["seconds"], record["bytes"], block, row)
