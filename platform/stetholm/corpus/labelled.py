"""Pairs from labels: what a publisher says of a recording, asked for and answered in StethoBench's tone.

One pair a task that the labels can answer, and nothing that they do not say. Comparisons and free wording are the work
of pair synthesis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Recording
from stetholm.corpus.schema import Entry, Pair
from stetholm.corpus.splits import Patient, Split
from stetholm.corpus.templates import phrasing
from stetholm.settings import Task

WRITER = "labels"
"""The ``model`` of these pairs."""


def labelled_pairs(recordings: Iterable[Recording], splits: Mapping[Patient, Split], seed: int) -> Iterator[Entry]:
    """The pairs of all ``recordings``; an entry stands in the recording's file, its line counts the file's pairs."""
    for recording in recordings:
        rng = _rng(seed, recording)
        split = splits[recording.dataset, recording.patient]
        for number, (task, answer) in enumerate(answers(recording).items(), start=1):
            question = phrasing(task, recording.kind, recording.site or "", rng)
            yield Entry(recording.filename, number, _pair(recording, split, task, question, answer))


def answers(recording: Recording) -> dict[Task, str]:
    """What the labels of ``recording`` answer, by task."""
    kind, labels = recording.kind, recording.labels
    status, finding, diagnosis = labels.get(STATUS), labels.get(FINDING), labels.get(DIAGNOSIS)
    found: dict[Task, str] = {}
    if status:
        found["Classification"] = f"The {kind} sound is {status}."
    if finding:
        found["Identification"] = f"The main finding is {finding}."
    if status and finding:
        conclusion = f" The diagnosis is {diagnosis}." if diagnosis else ""
        found["Report"] = f"The {kind} sound is {status}, with {finding}.{conclusion}"
    if diagnosis:
        heard = f" The recording shows {finding}." if finding else ""
        found["Reasoning"] = f"{diagnosis[0].upper()}{diagnosis[1:]}.{heard}"
    if recording.site and finding:
        found["Location"] = f"At the {recording.site}: {finding}."
    return found


def _pair(recording: Recording, split: Split, task: Task, question: str, answer: str) -> Pair:
    return Pair(
        filenames=(recording.filename,),
        instruction=question,
        response=answer,
        dataset=recording.dataset,
        split=split,
        task=task,
        distribution=recording.distribution,
        model=WRITER,
        patient=recording.patient,
        site=recording.site,
        device=recording.device,
    )


def _rng(seed: int, recording: Recording) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{recording.dataset}/{recording.filename}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))
