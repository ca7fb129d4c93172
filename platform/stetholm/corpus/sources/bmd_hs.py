"""BMD-HS (BUET Multi-disease Heart Sound): ``AR_016_sit_Aor.wav`` and ``train.csv`` with a row a patient.

A name is ``disease_patient_posture_site``; ``MD`` stands for several diseases, ``N`` for none. The table has a column a
disease (``AS``, ``AR``, ``MR``, ``MS``, ``N``; 0, 1, or N/A) and names the patient's eight recordings; who the patient
is stands in ``additional_metadata.csv``. The dataset is whole without the latter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import DIAGNOSIS, STATUS, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import audio_files, csv_rows, find, require, require_any, stem

DATASET, LICENCE = "BMD-HS", "CC-BY-NC-ND-4.0"
TABLE, PEOPLE = "train.csv", "additional_metadata.csv"
DISEASES = {
    "AS": "aortic stenosis",
    "AR": "aortic regurgitation",
    "MR": "mitral regurgitation",
    "MS": "mitral stenosis",
}
SITES = {"Aor": "aortic area", "Pul": "pulmonic area", "Tri": "tricuspid area", "Mit": "mitral area"}
POSTURES = {"sit": "sitting", "sup": "supine"}
_NAME = re.compile(r"(?:AS|AR|MR|MS|MD|N)_(?P<patient>\d{3})_(?P<posture>sit|sup)_(?P<site>Aor|Pul|Tri|Mit)")
_WORDS = {
    "Gender": ("sex", {"M": "male", "F": "female"}),
    "Smoker": ("smoker", {"0": "no", "1": "yes"}),
    "Lives": ("residence", {"U": "urban", "R": "rural"}),
}


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = list(folder.files())
    table = require(names, TABLE, DATASET)
    audio = require_any(audio_files(names), lambda name: _NAME.fullmatch(stem(name)), DATASET)
    unseen = {stem(name): name for name in audio}
    people = _people(folder, names)
    for line, row in csv_rows(folder, table):
        try:
            labels = _diagnosis(row) | people.get(row.get("patient_id", ""), {})
        except ValueError as error:
            yield Reject(table, line, str(error))
            continue
        for record in (value for column, value in row.items() if column.startswith("recording_") and value):
            match = _NAME.fullmatch(record)
            if match is None or record not in unseen:
                yield Reject(table, line, f"there is no recording {record[:40]!r}, or it stood above")
            else:
                yield _recording(unseen.pop(record), match, labels)
    for name in unseen.values():
        yield Reject(name, 0, f"{TABLE} has no usable row of it")


def _recording(name: str, match: re.Match[str], labels: Mapping[str, str]) -> Recording:
    return Recording(
        name, DATASET, "heart", match["patient"], LICENCE,
        site=SITES[match["site"]], labels={**labels, "posture": POSTURES[match["posture"]]}, distribution="OOD",
    )  # fmt: skip


def _diagnosis(row: Mapping[str, str]) -> dict[str, str]:
    """What a row says of the heart.

    Raises:
        ValueError: a disease is neither there nor not, or the row says both normal and ill, or neither.
    """
    flags = {column: row.get(column, "") for column in (*DISEASES, "N")}
    wrong = next((column for column, flag in flags.items() if flag not in ("0", "1")), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is not 0 or 1: {flags[wrong][:40]!r}")
    diseases = [words for column, words in DISEASES.items() if flags[column] == "1"]
    if (flags["N"] == "1") == bool(diseases):
        raise ValueError("it is both normal and ill, or neither")
    return {
        STATUS: "abnormal" if diseases else "normal",
        DIAGNOSIS: " and ".join(filter(None, (", ".join(diseases[:-1]), *diseases[-1:]))) or "no heart disease",
    }


def _people(folder: AudioFolder, names: list[str]) -> dict[str, dict[str, str]]:
    """Labels by ``patient_id``."""
    table = find(names, PEOPLE)
    if table is None:
        return {}
    people = {}
    for _, row in csv_rows(folder, table):
        words = {label: values.get(row.get(column, "")) for column, (label, values) in _WORDS.items()}
        age = row.get("Age") if re.fullmatch(r"\d{1,3}-\d{1,3}", row.get("Age", "")) else None
        people[row.get("patient_id", "")] = {
            label: value for label, value in {"age": age, **words}.items() if value is not None
        }
    return people
