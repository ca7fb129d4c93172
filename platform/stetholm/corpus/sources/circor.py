"""CirCor DigiScope 1.0.3: ``50115_AV.wav`` beside ``50115_AV.tsv``, and ``training_data.csv`` with a row a patient.

A name is ``patient_site``, or ``patient_site_index`` where a site was recorded twice. Rows of a ``.tsv`` are
``start end code`` (seconds; 0 unannotated, 1 S1, 2 systole, 3 S2, 4 diastole). The table describes a patient's murmur
as a whole; ``Murmur locations`` says at which sites it was heard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import FINDING, STATUS, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import audio_files, csv_rows, read_text, require, require_any, stem
from stetholm.corpus.sources.timed import timed_rows
from stetholm.errors import UserError

DATASET, LICENCE = "heart-circor", "ODC-By-1.0"
DEVICE = "Littmann 3200"
TABLE = "training_data.csv"
SITES = {"AV": "aortic area", "PV": "pulmonic area", "TV": "tricuspid area", "MV": "mitral area", "Phc": None}
"""``Phc`` is any other place."""
PHASES = {"0": None, "1": "S1", "2": "systole", "3": "S2", "4": "diastole"}
_NAME = re.compile(r"(?P<patient>\d{1,9})_(?P<site>AV|PV|TV|MV|Phc)(?:_\d+)?")
_ID = re.compile(r"\d{1,9}(?=(?:\.0)?$)")
_MURMUR, _OUTCOME = ("Present", "Absent", "Unknown"), ("Normal", "Abnormal")
_TRAITS = {"timing": "timing", "shape": "shape", "grading": "grade", "pitch": "pitch", "quality": "quality"}


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = list(folder.files())
    table = require(names, TABLE, DATASET)
    audio = require_any(audio_files(names), lambda name: _NAME.fullmatch(stem(name)), DATASET)
    recorded = {match["patient"] for name in audio if (match := _NAME.fullmatch(stem(name)))}
    patients: dict[str, dict[str, str]] = {}
    for line, row in csv_rows(folder, table):
        if wrong := _wrong(row, recorded):
            yield Reject(table, line, wrong)
        else:
            patients[row["Patient ID"]] = row
    there = set(names)
    for name in audio:
        yield _recording(folder, name, there, patients)


def _wrong(row: Mapping[str, str], recorded: set[str]) -> str | None:
    """Why a row cannot be used, or None."""
    if row.get("Patient ID") not in recorded:
        return f"there is no recording of patient {row.get('Patient ID', '')[:40]!r}"
    for column, values in (("Murmur", _MURMUR), ("Outcome", _OUTCOME)):
        if row.get(column) not in values:
            return f"{column} is not {' or '.join(values)}: {row.get(column, '')[:40]!r}"
    return None


def _recording(
    folder: AudioFolder, name: str, there: set[str], patients: Mapping[str, Mapping[str, str]]
) -> Recording | Reject:
    match = _NAME.fullmatch(stem(name))
    if match is None:
        return Reject(name, 0, "the name is not patient_site or patient_site_index")
    row = patients.get(match["patient"])
    if row is None:
        return Reject(name, 0, f"{TABLE} has no usable row of patient {match['patient']}")
    phases = f"{name.rpartition('.')[0]}.tsv"
    if phases not in there:
        return Reject(name, 0, f"there is no {phases} with its heart sounds")
    try:
        events = timed_rows(read_text(folder, phases), PHASES)
    except (ValueError, UserError) as error:
        return Reject(phases, 0, str(error))
    return Recording(
        name, DATASET, "heart", _patient(row), LICENCE,
        site=SITES[match["site"]], device=DEVICE, labels=_labels(row, match["site"]), events=events,
    )  # fmt: skip


def _patient(row: Mapping[str, str]) -> str:
    """One id a person: who came to both screenings has two, each row naming the other as ``Additional ID``."""
    ids = (_ID.match(row.get(column, "")) for column in ("Patient ID", "Additional ID"))
    return min((match[0] for match in ids if match), key=int)


def _labels(row: Mapping[str, str], site: str) -> dict[str, str]:
    labels = _murmur(row, site) | {"outcome": row["Outcome"].lower()}
    return labels | {key.lower(): row[key].lower() for key in ("Age", "Sex") if _known(row.get(key))}


def _murmur(row: Mapping[str, str], site: str) -> dict[str, str]:
    """What is heard at one site; nothing where the publisher leaves it open."""
    sites = row.get("Murmur locations", "")
    if row["Murmur"] == "Unknown" or (row["Murmur"] == "Present" and not _known(sites)):
        return {}
    if row["Murmur"] == "Absent" or site not in sites.split("+"):
        return {STATUS: "normal", FINDING: "clear S1 and S2 with silent intervals"}
    phases = [phase for phase in ("Systolic", "Diastolic") if _known(row.get(f"{phase} murmur timing"))]
    if len(phases) != 1:  # of two murmurs it is not published which is heard where
        return {STATUS: "abnormal", FINDING: "a murmur"}
    traits = {f"murmur {label}": row.get(f"{phases[0]} murmur {key}", "") for key, label in _TRAITS.items()}
    return {
        STATUS: "abnormal",
        FINDING: f"a {phases[0].lower()} murmur",
        **{key: value if "/" in value else value.lower() for key, value in traits.items() if _known(value)},
    }


def _known(value: str | None) -> bool:
    return bool(value) and value != "nan"
