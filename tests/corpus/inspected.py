"""A small corpus with a catalogue, as ingest leaves it, but made without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stetholm.audio.decode import decode, encode_flac
from stetholm.corpus.catalog import write_part
from stetholm.corpus.manifest import Manifest
from stetholm.corpus.shards import sample_id, write_corpus, write_rejects
from stetholm.storage import Storage
from tests.corpus.sounds import wav

FLAC = encode_flac(decode(wav(0)))


def row(recordings: str | Sequence[str], number: int = 0, **changes: Any) -> dict[str, Any]:
    """A pair about recordings of half a second (but 8 s by its own account)."""
    names = [recordings] if isinstance(recordings, str) else list(recordings)
    made = {
        "recording_ids": names,
        "audio": [FLAC] * len(names),
        "sampling_rate": [4000] * len(names),
        "seconds": [8.0] * len(names),
        "instruction": f"What is heard ({number})?",
        "response": f"A sound ({number}).",
        "task": "Report",
        "dataset": "lungs",
        "distribution": "ID",
        "patient": names[0],
        **changes,
    }
    return {**made, "sample_id": sample_id(names, made["instruction"], made["response"], made["task"])}


def entry(recording: str, labels: Mapping[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """A row of the catalogue."""
    known = {
        "recording_id": recording,
        "source": "test",
        "filename": f"{recording}.wav",
        "stamp": "1",
        "sampling_rate": 4000,
        "seconds": 8.0,
        "dataset": "lungs",
        "kind": "lung",
        "patient": f"patient of {recording}",
        "split": "train",
        "distribution": "ID",
        "labels": labels,
        "events": [],
    }
    return {**known, **changes}


def make(
    storage: Storage,
    name: str,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    catalogue: Sequence[Mapping[str, Any]] = (),
    rejects: Sequence[str] = (),
    **options: Any,
) -> str:
    """Write the corpus ``test-inspect/<name>``; returns its URI."""
    uri = storage.join("test-inspect", name)
    manifest = write_corpus(storage, uri, splits, inputs={}, row_group_rows=2, rejected=len(rejects), **options)
    write_rejects(storage, uri, [{"source": "s", "line": 1, "reason": reason, "origin": "r"} for reason in rejects])
    if catalogue:
        replace(manifest, catalog=[write_part(storage, uri, 0, catalogue)]).save(storage, uri)
    assert Manifest.load(storage, uri).rows == manifest.rows
    return uri
