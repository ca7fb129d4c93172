"""ZCHSound: ``ZCH0001.wav``, a child each, and two tables with a row a recording.

``Clean Heartsound Data Details.csv`` and ``Noise Heartsound Data Details.csv`` list the recordings of either quality:
``fileName;gender;age(days);diagnosis``, the diagnosis (by ultrasound) ``NORMAL``, ``ASD``, ``VSD``, ``PDA`` or ``PFO``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import DIAGNOSIS, STATUS, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import audio_files, csv_rows, find, require, require_any, stem

DATASET, LICENCE = "heart-zch", "NOASSERTION"
TABLES = {"Clean Heartsound Data Details.csv": "clean", "Noise Heartsound Data Details.csv": "noisy"}
"""The quality of their recordings."""
DIAGNOSES = {
    "NORMAL": "no heart disease",
    "ASD": "atrial septal defect",
    "VSD": "ventricular septal defect",
    "PDA": "patent ductus arteriosus",
    "PFO": "patent foramen ovale",
}
# A patent foramen ovale is most often silent: it does not tell how the heart sounds.
_STATUSES = {"NORMAL": "normal", "ASD": "abnormal", "VSD": "abnormal", "PDA": "abnormal"}
_SEXES = {"M": "male", "F": "female"}
_NAME = re.compile(r"ZCH\d{4}")


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = list(folder.files())
    tables = {table: quality for wanted, quality in TABLES.items() if (table := find(names, wanted))}
    if not tables:
        require(names, next(iter(TABLES)), DATASET)
    audio = require_any(audio_files(names), lambda name: _NAME.fullmatch(stem(name)), DATASET)
    unseen = {stem(name): name for name in audio}
    for table, quality in tables.items():
        for line, row in csv_rows(folder, table, delimiter=";"):
            record, diagnosis = stem(row.get("fileName", "")), row.get("diagnosis", "").upper()
            if record not in unseen:
                yield Reject(table, line, f"there is no recording {record[:40]!r}, or it stood above")
            elif diagnosis not in DIAGNOSES:
                yield Reject(table, line, f"diagnosis is not {' or '.join(DIAGNOSES)}: {diagnosis[:40]!r}")
            else:
                labels = _labels(row, diagnosis) | {"quality": quality}
                yield Recording(unseen.pop(record), DATASET, "heart", record, LICENCE, labels=labels)
    for name in unseen.values():
        yield Reject(name, 0, "no table has a usable row of it")


def _labels(row: Mapping[str, str], diagnosis: str) -> dict[str, str]:
    labels = {DIAGNOSIS: DIAGNOSES[diagnosis]}
    if diagnosis in _STATUSES:
        labels[STATUS] = _STATUSES[diagnosis]
    if sex := _SEXES.get(row.get("gender", "").upper()):
        labels["sex"] = sex
    if re.fullmatch(r"\d{1,5}", row.get("age(days)", "")):
        labels["age"] = f"{row['age(days)']} days"
    return labels
