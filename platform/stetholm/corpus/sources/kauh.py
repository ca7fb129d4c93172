"""KAUH, lung sounds of King Abdullah University Hospital: ``BP1_Asthma,I E W,P L L,70,M.wav``.

A name is the stethoscope's filter (bell, diaphragm or extended range), the patient, then diagnosis, sounds, site, age
and sex; the spreadsheet beside the recordings says the same. Each recording is there three times, once per filter.
Sounds are letters: the phase (I, E), then W wheezes, C crackles, Crep crepitations (crackles, too), B bronchial
breathing; N nothing added. Spelling and case vary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import audio_files, require_any, stem

DATASET, LICENCE, DEVICE = "kauh", "CC-BY-4.0", "Littmann 3200"
FILTERS = {"B": "bell", "D": "diaphragm", "E": "extended range"}
PHASES = {"i": "inspiration", "e": "expiration"}
SOUNDS = {
    "w": "wheezes",
    "c": "crackles",
    "crep": "crackles",
    "b": "bronchial breathing",
    "bronchial": "bronchial breathing",
}
DIAGNOSES = {
    "n": "no lung disease",
    "asthma": "asthma",
    "copd": "COPD",
    "bron": "bronchitis",
    "heart failure": "heart failure",
    "lung fibrosis": "lung fibrosis",
    "plueral effusion": "pleural effusion",
    "pleural effusion": "pleural effusion",
    "pneumonia": "pneumonia",
}
LEVELS = {"U": "upper", "M": "middle", "L": "lower"}
SIDES = {"L": "left", "R": "right"}
_NAME = re.compile(
    r"(?P<filter>[BDE])P(?P<patient>[0-9]+)_(?P<diagnosis>[^,]+),(?P<sounds>[^,]+),(?P<site>[^,]*)"
    r",\s*(?P<age>[0-9]+)\s*,\s*(?P<sex>[MmFf])\s*"
)
_PLACE = re.compile(r"(?P<side>[LR])(?P<level>[UML])|(?P<first>[UM])(?P<last>[LR])")


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = require_any(audio_files(list(folder.files())), lambda name: _NAME.fullmatch(stem(name)), "KAUH")
    for name in names:
        match = _NAME.fullmatch(stem(name))
        if match is None:
            yield Reject(name, 0, "the name is not filter and patient_diagnosis,sounds,site,age,sex")
            continue
        try:
            labels = _labels(match)
        except ValueError as error:
            yield Reject(name, 0, str(error))
            continue
        yield Recording(
            name, DATASET, "lung", match["patient"], LICENCE, site=_site(match["site"]), device=DEVICE, labels=labels
        )


def _labels(name: re.Match[str]) -> dict[str, str]:
    return _sounds(name["sounds"]) | {
        DIAGNOSIS: _diagnosis(name["diagnosis"]),
        "age": name["age"],
        "sex": "male" if name["sex"] in "Mm" else "female",
        "filter": FILTERS[name["filter"]],
    }


def _sounds(code: str) -> dict[str, str]:
    """Status, finding and, where it is known, the phase of ``I E W``."""
    letters = code.lower().split()
    if letters == ["n"]:
        return {STATUS: "normal", FINDING: "no added sounds"}
    unknown = [letter for letter in letters if letter not in SOUNDS and letter not in PHASES]
    sounds = sorted({SOUNDS[letter] for letter in letters if letter in SOUNDS})
    if unknown or not sounds:
        raise ValueError(f"sounds {code[:80]!r} are none of KAUH's")
    labels = {STATUS: "abnormal", FINDING: " and ".join(sounds)}
    if phases := [PHASES[letter] for letter in letters if letter in PHASES]:
        labels["phase"] = " and ".join(phases)
    return labels


def _diagnosis(name: str) -> str:
    """``heart failure and COPD`` of ``Heart Failure + COPD``."""
    parts = [" ".join(part.split()) for part in re.split(r"\+| and ", name.lower())]
    if any(part not in DIAGNOSES for part in parts):
        raise ValueError(f"diagnosis {name[:80]!r} is none of KAUH's")
    return " and ".join(DIAGNOSES[part] for part in parts)


def _site(code: str) -> str | None:
    """``lower posterior left chest`` of ``P L L``; of a code with both sides or with no side only the face."""
    letters = "".join(code.upper().split())
    face = {"A": "anterior", "P": "posterior"}.get(letters[:1])
    match = _PLACE.fullmatch(letters[1:])
    if face is None or match is None:
        return f"{face} chest" if face else None
    level, side = match["level"] or match["first"], match["side"] or match["last"]
    return f"{LEVELS[level]} {face} {SIDES[side]} chest"
