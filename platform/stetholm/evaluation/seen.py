"""Whether a checkpoint was trained on what it is to be measured on: its lineage, parent by parent, corpus by corpus.

A patient or a recording of the evaluated split that stands in the train split of any corpus of the lineage makes every
figure too good. Corpora are told apart by their URIs; recordings by the SHA-256 of the publisher's file, so that the
same recording under another patient's name is found as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stetholm.corpus.manifest import CorpusError
from stetholm.errors import UserError
from stetholm.evaluation.examples import Example, read_rows
from stetholm.storage import Storage

TRAIN = "train"
LONGEST = 100
"""Checkpoints in a lineage, against one that names itself as its ancestor."""


@dataclass(frozen=True)
class Seen:
    """What the lineage shows.

    Attributes:
        corpora: URIs of the corpora whose train splits were compared.
        patients: of the evaluated split that were trained on, as ``dataset/patient``.
        recordings: likewise.
        gaps: what could not be compared, in words.
    """

    corpora: tuple[str, ...]
    patients: tuple[str, ...]
    recordings: tuple[str, ...]
    gaps: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return {
            "corpora": list(self.corpora),
            "seen_patients": len(self.patients),
            "seen_recordings": len(self.recordings),
            "not_compared": list(self.gaps),
        }


def lineage(checkpoint: str, storage: Storage) -> Iterator[dict[str, Any]]:
    """``lineage.json`` of a checkpoint and of those before it, newest first; ends where one has none."""
    uri: str | None = checkpoint
    for _ in range(LONGEST):
        entry = _read(uri, storage) if uri else None
        if entry is None:
            return
        yield entry
        uri = entry.get("parent")


def _read(uri: str, storage: Storage) -> dict[str, Any] | None:
    if uri.startswith("s3://"):
        where = f"{uri.rstrip('/')}/lineage.json"
        found: Any = storage.read_json(where) if storage.exists(where) else None
    else:
        path = Path(uri).expanduser() / "lineage.json"
        found = json.loads(path.read_text("utf-8")) if path.is_file() else None
    return found if isinstance(found, dict) else None


def find_seen(checkpoint: str, storage: Storage, examples: Sequence[Example]) -> Seen:
    """Compare examples with what the checkpoint and its ancestors were trained on."""
    patients = {(one.dataset, name) for one in examples for name in one.patient.split("+") if name}
    recordings = {name for one in examples for name in one.recording_ids}
    corpora: dict[str, bool] = {}
    for entry in lineage(checkpoint, storage):
        if entry.get("corpus"):
            uri = str(entry["corpus"]).rstrip("/")
            beyond = bool((entry.get("settings") or {}).get("out_of_domain"))
            corpora[uri] = corpora.get(uri, False) or beyond
    seen_patients: set[tuple[str, str]] = set()
    seen_recordings: set[str] = set()
    gaps = [] if corpora else ["the checkpoint does not say what it was trained on (no lineage.json)"]
    for uri, beyond in corpora.items():
        try:
            found_patients, found_recordings = _trained_on(storage, uri, beyond)
        except CorpusError as error:
            gaps.append(f"{uri}: {error}")
            continue
        seen_patients |= patients & found_patients
        seen_recordings |= recordings & found_recordings
    names = tuple(sorted("/".join(one) for one in seen_patients))
    return Seen(tuple(corpora), names, tuple(sorted(seen_recordings)), tuple(gaps))


def _trained_on(storage: Storage, corpus: str, out_of_domain: bool) -> tuple[set[tuple[str, str]], set[str]]:
    """(dataset, patient) and recordings of a corpus's train split; out-of-domain rows are trained on if asked for."""
    patients: set[tuple[str, str]] = set()
    recordings: set[str] = set()
    columns = ("sample_id", "dataset", "patient", "distribution", "recording_ids")
    for row in read_rows(storage, corpus, TRAIN, columns):
        if out_of_domain or row["distribution"] != "OOD":
            patients |= {(row["dataset"], name) for name in row["patient"].split("+")}
            recordings |= set(row["recording_ids"])
    return patients, recordings


def require_unseen(seen: Seen, checkpoint: str, split: str, allowed: bool) -> None:
    """Refuse to measure a checkpoint on what it was trained on.

    Raises:
        UserError: it was, and ``evaluate.allow_seen_patients`` is not set.
    """
    if allowed or not (seen.patients or seen.recordings):
        return
    shown = ", ".join([*seen.patients, *(f"recording {name[:12]}" for name in seen.recordings)][:3])
    raise UserError(
        f"{checkpoint} was trained on {len(seen.patients)} patients and {len(seen.recordings)} recordings of split "
        f"{split!r} (its lineage shows it; e.g. {shown}): its figures would be too good. Choose another evaluate.split "
        "or checkpoint, or set evaluate.allow_seen_patients=true"
    )
