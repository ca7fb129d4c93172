"""COUGHVID: ``<uuid>.webm`` or ``.ogg``, a cough recorded by phone each, and ``metadata_compiled.csv`` with a row each.

``status`` is what the person reported (``healthy``, ``symptomatic``, ``COVID-19``). Up to four experts heard some of
the recordings: ``quality_1``, ``cough_type_1``, ``wheezing_1``, ``diagnosis_1`` and so on; what most of those who heard
one say holds. ``cough_detected`` is the publisher's detector's probability of a cough, who advises to use those from
0.8 on: the others are left out. Who coughed is not published.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import AUDIO_SUFFIXES, audio_files, csv_rows, require, require_any, stem

DATASET, LICENCE = "coughvid", "CC-BY-4.0"
TABLE = "metadata_compiled.csv"
LEAST_PROBABILITY = 0.8
REPORTED = {"healthy": "healthy", "symptomatic": "symptomatic", "COVID-19": "COVID-19", "COVID": "COVID-19"}
HEALTHY = "no respiratory disease"
DIAGNOSES = {
    "upper_infection": "upper respiratory tract infection",
    "lower_infection": "lower respiratory tract infection",
    "obstructive_disease": "obstructive lung disease",
    "COVID-19": "COVID-19",
    "healthy_cough": HEALTHY,
}
SOUNDS = {
    "dyspnea": "breathlessness",
    "wheezing": "wheezing",
    "stridor": "stridor",
    "choking": "choking",
    "congestion": "nasal congestion",
}
_WEBM = ".webm"
_NAME = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = list(folder.files())
    table = require(names, TABLE, DATASET)
    audio = require_any(audio_files(names, (_WEBM, *AUDIO_SUFFIXES)), lambda name: _NAME.fullmatch(stem(name)), DATASET)
    # A converted recording comes after its WebM original, and so takes its place.
    unseen = {stem(name): name for name in sorted(audio, key=lambda name: not name.lower().endswith(_WEBM))}
    for line, row in csv_rows(folder, table):
        uuid = row.get("uuid", "")
        wrong = _wrong(row, unseen)
        if wrong:
            yield Reject(table, line, wrong)
        elif float(row.get("cough_detected") or 1) < LEAST_PROBABILITY:
            unseen.pop(uuid)
        elif unseen[uuid].lower().endswith(_WEBM):
            yield Reject(unseen.pop(uuid), 0, "WebM cannot be decoded; convert it to WAV, FLAC or OGG")
        else:
            yield Recording(unseen.pop(uuid), DATASET, "cough", uuid, LICENCE, labels=_labels(row))
    for name in unseen.values():
        yield Reject(name, 0, f"{TABLE} has no usable row of it")


def _wrong(row: Mapping[str, str], unseen: Mapping[str, str]) -> str | None:
    """Why a row cannot be used, or None."""
    if row.get("uuid") not in unseen:
        return f"there is no recording {row.get('uuid', '')[:40]!r}, or it stood above"
    if row.get("status") and row["status"] not in REPORTED:
        return f"status is not {' or '.join(REPORTED)}: {row['status'][:40]!r}"
    try:
        probability = float(row.get("cough_detected") or 1)
    except ValueError:
        probability = -1
    if not 0 <= probability <= 1:
        return f"cough_detected is no probability: {row['cough_detected'][:40]!r}"
    return None


def _labels(row: Mapping[str, str]) -> dict[str, str]:
    reported, opinion = REPORTED.get(row.get("status", "")), _most(row, "diagnosis")
    diagnosis = DIAGNOSES.get(opinion or "") or (HEALTHY if reported == "healthy" else None)
    labels = {
        STATUS: None if opinion not in DIAGNOSES else "normal" if opinion == "healthy_cough" else "abnormal",
        FINDING: _finding(row),
        # What a person was tested for counts more than what an expert hears.
        DIAGNOSIS: "COVID-19" if reported == "COVID-19" else diagnosis,
        "reported health": reported,
        "severity": _most(row, "severity"),
        "quality": _most(row, "quality"),
        "sex": row.get("gender"),
        "age": _number(row.get("age", "")),
    }
    return {label: value for label, value in labels.items() if value}


def _finding(row: Mapping[str, str]) -> str:
    if _most(row, "quality") == "no_cough":
        return "no cough"
    kind = _most(row, "cough_type")
    cough = f"a {kind} cough" if kind in ("dry", "wet") else "a cough"
    sounds = [words for column, words in SOUNDS.items() if _most(row, column) == "True"]
    return f"{cough} with {' and '.join(sounds)}" if sounds else cough


def _most(row: Mapping[str, str], column: str) -> str | None:
    """What more than half of the experts who heard the recording say in a column."""
    said = [value for expert in "1234" if (value := row.get(f"{column}_{expert}"))]
    value, count = Counter(said).most_common(1)[0] if said else ("unknown", 0)
    return value if 2 * count > len(said) and value != "unknown" else None


def _number(value: str) -> str | None:
    """``15`` of ``15.0``."""
    match = re.fullmatch(r"(\d{1,3})(?:\.0)?", value)
    return match[1] if match else None
