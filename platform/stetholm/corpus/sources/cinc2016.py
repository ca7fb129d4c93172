"""PhysioNet/CinC Challenge 2016: ``training-a/a0001.wav`` and, in each folder, ``REFERENCE.csv`` with its labels.

Rows are ``a0001,1`` (1 abnormal, -1 normal), those of ``REFERENCE-SQI.csv``, where it is there, ``a0001,1,0`` (quality:
1 good, 0 unsure). The folder ``validation`` repeats recordings of the training folders and is left out. The noise of a
subset's device gives the subset away, so whole subsets go to splits; which ones is our choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Literal

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import STATUS, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import audio_files, csv_rows, require, require_any, stem

DATASET, LICENCE = "cinc", "ODC-By-1.0"
TABLE, QUALITY_TABLE = "REFERENCE.csv", "REFERENCE-SQI.csv"
SPLITS: dict[str, Literal["train", "val", "test"]] = {
    "a": "test", "b": "val", "c": "test", "d": "test", "e": "train", "f": "test",
}  # fmt: skip
"""By subset, the first letter of a recording's name."""
STATUSES = {"1": "abnormal", "-1": "normal"}
QUALITIES = {"1": "good", "0": "unsure"}
_NAME = re.compile(r"[a-f]\d{4,5}")


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = [name for name in folder.files() if "validation" not in PurePosixPath(name).parts[:-1]]
    require(names, TABLE, DATASET)
    subsets: dict[str, list[str]] = {}
    for name in require_any(audio_files(names), lambda name: _NAME.fullmatch(stem(name)), DATASET):
        subsets.setdefault(name[: name.rfind("/") + 1], []).append(name)
    for where, audio in subsets.items():
        yield from _subset(folder, where, audio, set(names))


def _subset(folder: AudioFolder, where: str, audio: list[str], there: set[str]) -> Iterator[Recording | Reject]:
    """The recordings that lie in the folder ``where``."""
    table = where + TABLE
    unseen = {stem(name): name for name in audio}
    qualities = _qualities(folder, where + QUALITY_TABLE) if where + QUALITY_TABLE in there else {}
    rows = csv_rows(folder, table, columns=("record", "status")) if table in there else ()
    for line, row in rows:
        record, status = row["record"], STATUSES.get(row["status"])
        if record not in unseen:
            yield Reject(table, line, f"there is no recording {record[:40]!r}, or it stood above")
        elif status is None:
            yield Reject(table, line, f"the label is not {' or '.join(STATUSES)}: {row['status'][:40]!r}")
        elif _NAME.fullmatch(record):
            quality = {"quality": qualities[record]} if record in qualities else {}
            yield Recording(
                unseen.pop(record), DATASET, "heart", record, LICENCE,
                labels={STATUS: status, **quality}, split=SPLITS[record[0]], distribution="OOD",
            )  # fmt: skip
    for record, name in unseen.items():
        known = _NAME.fullmatch(record)
        yield Reject(name, 0, f"{table} has no usable row of it" if known else "the name is not a0001 or the like")


def _qualities(folder: AudioFolder, table: str) -> dict[str, str]:
    rows = csv_rows(folder, table, columns=("record", "status", "quality"))
    return {row["record"]: QUALITIES[row["quality"]] for _, row in rows if row["quality"] in QUALITIES}
