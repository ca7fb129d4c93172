"""Coswara: ``20200413/<id>/cough-heavy.wav``, a folder a person, and ``combined_data.csv`` with a row a person.

Coughs (``heavy``, ``shallow``) and breaths (``deep``, ``shallow``) are read; vowels and counting are speech, and are
left out. ``covid_status`` is what the person reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import DIAGNOSIS, FINDING, Kind, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import audio_files, csv_rows, require, require_any, stem

DATASET, LICENCE = "coswara", "CC-BY-4.0"
TABLE = "combined_data.csv"
SOUNDS: dict[str, tuple[Kind, str]] = {
    "cough-heavy": ("cough", "heavy coughs"),
    "cough-shallow": ("cough", "shallow coughs"),
    "breathing-deep": ("breath", "deep breathing"),
    "breathing-shallow": ("breath", "shallow breathing"),
}
"""Kind and finding by the name of a recording."""
STATUSES: dict[str, dict[str, str]] = {
    "healthy": {DIAGNOSIS: "no respiratory disease"},
    "no_resp_illness_exposed": {DIAGNOSIS: "no respiratory disease", "covid contact": "yes"},
    "resp_illness_not_identified": {DIAGNOSIS: "respiratory disease other than COVID-19"},
    "positive_asymp": {DIAGNOSIS: "COVID-19", "severity": "asymptomatic"},
    "positive_mild": {DIAGNOSIS: "COVID-19", "severity": "mild"},
    "positive_moderate": {DIAGNOSIS: "COVID-19", "severity": "moderate"},
    "recovered_full": {"history": "recovered from COVID-19"},
    "under_validation": {},
}
_SPEECH = re.compile(r"(?:vowel|counting)-\w+")


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = list(folder.files())
    table = require(names, TABLE, DATASET)
    unseen: dict[str, list[str]] = {}
    for name in require_any(audio_files(names), lambda name: stem(name) in SOUNDS, DATASET):
        if stem(name) in SOUNDS:
            unseen.setdefault(PurePosixPath(name).parent.name, []).append(name)
        elif not _SPEECH.fullmatch(stem(name)):
            yield Reject(name, 0, f"the name is not {' or '.join(SOUNDS)}")
    for line, row in csv_rows(folder, table):
        person, status = row.get("id", ""), row.get("covid_status", "")
        if person not in unseen:
            yield Reject(table, line, f"there is no recording of {person[:40]!r}, or the id stood above")
        elif status not in STATUSES:
            yield Reject(table, line, f"covid_status is not {' or '.join(STATUSES)}: {status[:40]!r}")
        else:
            yield from (_recording(name, person, row) for name in unseen.pop(person))
    for recordings in unseen.values():
        yield from (Reject(name, 0, f"{TABLE} has no usable row of its folder") for name in recordings)


def _recording(name: str, person: str, row: Mapping[str, str]) -> Recording:
    kind, finding = SOUNDS[stem(name)]
    labels = {FINDING: finding, **STATUSES[row["covid_status"]]}
    if re.fullmatch(r"\d{1,3}", row.get("a", "")):
        labels["age"] = row["a"]
    if row.get("g"):
        labels["sex"] = row["g"]
    return Recording(name, DATASET, kind, person, LICENCE, labels=labels)
