"""Which split a recording falls to: the publisher's, else by patient. No patient stands in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

from stetholm.corpus.recording import Recording

Split = Literal["train", "val", "test"]
Patient = tuple[str, str]
"""(dataset, patient)."""

TEST_SHARE, VAL_SHARE = 0.2, 0.1
_STRICTEST_FIRST: tuple[Split, ...] = ("test", "val", "train")


def assign_splits(
    recordings: Iterable[Recording], seed: int, earlier: Mapping[Patient, Split] | None = None
) -> dict[Patient, Split]:
    """The split of each patient.

    A patient of an ``earlier`` ingest stays in its split. Else the publisher's split holds; where it puts one patient
    into several, the whole patient goes to the strictest of them (test, then val), so that nothing of the test set is
    trained on. Else the patient falls to test, val or train in the shares 20, 10 and 70 % by a hash of seed, dataset
    and patient: who else is in the dataset changes nothing, so a corpus may grow.
    """
    published: dict[Patient, set[Split]] = {}
    for recording in recordings:
        splits = published.setdefault((recording.dataset, recording.patient), set())
        if recording.split is not None:
            splits.add(recording.split)
    kept = earlier or {}
    return {patient: kept.get(patient) or _split(patient, splits, seed) for patient, splits in published.items()}


def _split(patient: Patient, published: set[Split], seed: int) -> Split:
    for split in _STRICTEST_FIRST:
        if split in published:
            return split
    place = _uniform(seed, *patient)
    return "test" if place < TEST_SHARE else "val" if place < TEST_SHARE + VAL_SHARE else "train"


def _uniform(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on the seed and the names alone."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
