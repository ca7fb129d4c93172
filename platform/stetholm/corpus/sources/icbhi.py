"""ICBHI 2017 Respiratory Sound Database: ``101_1b1_Al_sc_Meditron.wav`` beside a ``.txt`` with its cycles.

A name is ``patient_index_site_mode_device``. Rows of a ``.txt`` are ``start end crackle wheeze`` (seconds, 0 or 1), a
row a respiratory cycle. Each patient's diagnosis stands in ``patient_diagnosis.csv`` (commas) or
``ICBHI_Challenge_diagnosis.txt`` (tabs), the official split in ``ICBHI_challenge_train_test.txt``; the dataset is whole
without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, cast

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Event, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import audio_files, find, read_text, require_any, stem
from stetholm.corpus.sources.timed import annotation, in_order, timed

DATASET, LICENCE = "icbhi", "CC0-1.0"
SITES = {
    "Tc": "trachea",
    "Al": "anterior left chest",
    "Ar": "anterior right chest",
    "Pl": "posterior left chest",
    "Pr": "posterior right chest",
    "Ll": "lateral left chest",
    "Lr": "lateral right chest",
}
DEVICES = {
    "AKGC417L": "AKG C417L",
    "LittC2SE": "Littmann Classic II SE",
    "Litt3200": "Littmann 3200",
    "Meditron": "Welch Allyn Meditron",
}
_NAME = re.compile(r"(?P<patient>\d{3})_(?P<index>\w+?)_(?P<site>[A-Z][a-z])_(?P<mode>sc|mc)_(?P<device>\w+)")
_HEALTHY = "healthy"


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = list(folder.files())
    there = set(names)
    diagnoses = _diagnoses(folder, names)
    splits = _splits(folder, names)
    for name in require_any(audio_files(names), lambda name: _NAME.fullmatch(stem(name)), "icbhi"):
        match = _NAME.fullmatch(stem(name))
        if match is None:
            yield Reject(name, 0, "the name is not patient_index_site_mode_device")
            continue
        found = annotation(folder, there, f"{name.rpartition('.')[0]}.txt", _cycles)
        if isinstance(found, Reject):
            yield found
            continue
        events, sounds = found
        labels = _labels(sounds, diagnoses.get(match["patient"]))
        yield Recording(
            name, DATASET, "lung", match["patient"], LICENCE,
            site=SITES.get(match["site"], match["site"]),
            device=DEVICES.get(match["device"], match["device"]),
            labels=labels, events=events, split=splits.get(stem(name)),
        )  # fmt: skip


def _cycles(text: str) -> tuple[tuple[Event, ...], set[str]]:
    """The events of an annotation, and which of ``crackles`` and ``wheezes`` are among them."""
    events: list[Event] = []
    sounds: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            start, end, crackle, wheeze = line.split()
            heard = [label for label, flag in (("crackles", crackle), ("wheezes", wheeze)) if int(flag)]
            events.append(timed(start, end, " and ".join(heard) or "no added sounds"))
        except ValueError:
            raise ValueError(f"line {number} is not 'start end crackle wheeze': {line[:80]!r}") from None
        sounds.update(heard)
    if not events:
        raise ValueError("it holds no respiratory cycle")
    return in_order(events), sounds


def _labels(sounds: set[str], diagnosis: str | None) -> dict[str, str]:
    labels = {
        STATUS: "abnormal" if sounds else "normal",
        FINDING: " and ".join(sorted(sounds)) or "no added sounds",
    }
    if diagnosis:
        labels[DIAGNOSIS] = "no lung disease" if diagnosis.lower() == _HEALTHY else diagnosis
    return labels


def _diagnoses(folder: AudioFolder, names: list[str]) -> dict[str, str]:
    table = find(names, "patient_diagnosis.csv") or find(names, "ICBHI_Challenge_diagnosis.txt")
    if table is None:
        return {}
    rows = (re.split(r"[,;\s]+", line.strip(), maxsplit=1) for line in read_text(folder, table).splitlines())
    return {row[0]: row[1].strip() for row in rows if len(row) == 2}


def _splits(folder: AudioFolder, names: list[str]) -> dict[str, Literal["train", "test"]]:
    """By recording name; the file has rows ``101_1b1_Al_sc_Meditron<TAB>test``."""
    table = find(names, "ICBHI_challenge_train_test.txt")
    if table is None:
        return {}
    rows = (line.split() for line in read_text(folder, table).splitlines())
    return {stem(row[0]): cast(Literal["train", "test"], row[1]) for row in rows if row[1:] in (["train"], ["test"])}
