"""Whether a checkpoint was trained on what it is to be measured on: its lineage, parent by parent, corpus by corpus.

A patient or a recording of the evaluated split that stands in the train split of any corpus of the lineage makes every
figure too good. Corpora are told apart by their URIs; recordings by the SHA-256 of the publisher's file, so that the
same recording under another patient's name is found as well. What cannot be compared is a gap: a checkpoint that does
not say what it was trained on, a corpus that is gone, or one that is no longer what was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stetholm.corpus.manifest import CorpusError, Manifest
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
    entries = list(lineage(checkpoint, storage))
    corpora = _corpora(entries)
    seen_patients: set[tuple[str, str]] = set()
    seen_recordings: set[str] = set()
    gaps = _untold(checkpoint, entries)
    for uri, trained in corpora.items():
        try:
            gaps += _changed(storage, uri, trained)
            found_patients, found_recordings = _trained_on(storage, uri, trained.out_of_domain)
        except CorpusError as error:
            gaps.append(f"{uri}: {error}")
            continue
        seen_patients |= patients & found_patients
        seen_recordings |= recordings & found_recordings
    names = tuple(sorted("/".join(one) for one in seen_patients))
    return Seen(tuple(corpora), names, tuple(sorted(seen_recordings)), tuple(gaps))


@dataclass
class _Trained:
    """What a lineage says of one corpus: its manifest's SHA-256 by stage, and whether out-of-domain rows were used."""

    sha256: dict[str, str] = field(default_factory=dict)
    out_of_domain: bool = False


def _corpora(entries: Sequence[Mapping[str, Any]]) -> dict[str, _Trained]:
    """By URI, newest first."""
    found: dict[str, _Trained] = {}
    for entry in entries:
        if entry.get("corpus"):
            trained = found.setdefault(str(entry["corpus"]).rstrip("/"), _Trained())
            trained.sha256[str(entry.get("corpus_sha256"))] = str(entry.get("stage"))
            trained.out_of_domain |= bool((entry.get("settings") or {}).get("out_of_domain"))
    return found


def _untold(checkpoint: str, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Checkpoints of the lineage that do not say what they were trained on."""
    if not entries:
        return [f"{checkpoint} does not say what it was trained on (no lineage.json)"]
    gaps = [
        f"nobody says what {entry.get('parent') or checkpoint} was trained on ({entry.get('stage')})"
        for entry in entries
        if not entry.get("corpus")
    ]
    parent = entries[-1].get("parent")
    if parent and entries[-1].get("corpus"):
        gaps.append(f"{parent} does not say what it was trained on (no lineage.json, or too many before it)")
    return gaps


def _changed(storage: Storage, corpus: str, trained: _Trained) -> list[str]:
    """Stages that were trained on the corpus as it no longer is: who was in its train split then is not known."""
    now = Manifest.load(storage, corpus).sha256
    return [
        f"{corpus} has changed since {stage} was trained on it (its manifest was {sha256[:12]}, now {now[:12]})"
        for sha256, stage in trained.sha256.items()
        if sha256 != now
    ]


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
