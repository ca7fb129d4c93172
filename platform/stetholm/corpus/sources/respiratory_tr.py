"""RespiratoryDatabase@TR: ``H002_L1.wav``, with the COPD grade of each patient in ``Labels.csv`` (``H002,COPD4``).

The publisher's table is ``Labels.xlsx``, which is to be saved as CSV. Channels 1 to 6 of either side are lung sounds;
where on the chest each of them was, the published files do not say. The sounds themselves are not labelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import DIAGNOSIS, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import audio_files, read_text, require, require_any, stem

DATASET, LICENCE, DEVICE = "respiratory_tr", "CC-BY-4.0", "Littmann 3200"
TABLE = "Labels.csv"
SITES = {"L": "left chest", "R": "right chest"}
SEVERITIES = {"COPD0": "at risk", "COPD1": "mild", "COPD2": "moderate", "COPD3": "severe", "COPD4": "very severe"}
_NAME = re.compile(r"(?P<patient>H[0-9]{3})_(?P<channel>(?P<side>[LR])[1-6])")
_PATIENT = re.compile(r"H[0-9]{3}")


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = list(folder.files())
    recordings = require_any(audio_files(names), lambda name: _NAME.fullmatch(stem(name)), "RespiratoryDatabase@TR")
    table = require(names, TABLE, "RespiratoryDatabase@TR")
    grades, rejects = _grades(table, read_text(folder, table))
    yield from rejects
    for name in recordings:
        match = _NAME.fullmatch(stem(name))
        if match is None:
            yield Reject(name, 0, "the name is not patient_channel with a channel of L1 to L6 or R1 to R6")
        elif match["patient"] not in grades:
            yield Reject(name, 0, f"{table} has no grade of patient {match['patient']}")
        else:
            yield _recording(name, match, grades[match["patient"]])


def _grades(table: str, text: str) -> tuple[dict[str, str], list[Reject]]:
    """Grades by patient. Spreadsheets write ``,`` or ``;`` between values, and more of these at the end of a row."""
    grades: dict[str, str] = {}
    rejects = []
    lines = ((number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip(" ,;\t"))
    for place, (number, line) in enumerate(lines):
        patient, grade, *_ = [*(value.strip(' "') for value in re.split("[,;\t]", line)), ""]
        known = _PATIENT.fullmatch(patient) and grade.upper() in SEVERITIES
        if known and grades.setdefault(patient, grade.upper()) != grade.upper():
            rejects.append(Reject(table, number, f"patient {patient} has the grade {grades[patient]} above"))
        elif not known and (place or _PATIENT.fullmatch(patient)):  # the first row may be a header
            rejects.append(Reject(table, number, f"not a patient and one of COPD0 to COPD4: {line[:80]!r}"))
    return grades, rejects


def _recording(name: str, match: re.Match[str], grade: str) -> Recording:
    labels = {
        DIAGNOSIS: "at risk of COPD" if grade == "COPD0" else "COPD",
        "severity": SEVERITIES[grade],
        "grade": grade,
        "channel": match["channel"],
    }
    return Recording(
        name, DATASET, "lung", match["patient"], LICENCE,
        site=SITES[match["side"]], device=DEVICE, labels=labels, distribution="OOD",
    )  # fmt: skip
