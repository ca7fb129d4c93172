"""HF_Lung_V1: ``steth_20180814_09_37_11.wav`` beside ``steth_20180814_09_37_11_label.txt``, in ``train`` or ``test``.

``trunc_2019-07-31-11-20-43-L8_12.wav`` is the twelfth piece of what an eight-channel device heard at site L8. Rows of a
label file are ``I 00:00:01.234 00:00:02.345``: inspiration, expiration, D (discontinuous sounds, that is crackles),
Wheeze, Rhonchi, Stridor. Patients are not published, so all of one device and day count as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Literal

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import FINDING, STATUS, Event, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import audio_files, require_any, stem
from stetholm.corpus.sources.timed import annotation

DATASET, LICENCE = "hf_lung", "CC-BY-NC-4.0"
DEVICES = {"steth": "Littmann 3200", "trunc": "HF-Type-1"}
SITES = {
    "L1": "upper anterior right chest",
    "L2": "lower anterior right chest",
    "L3": "upper lateral right chest",
    "L4": "lower lateral right chest",
    "L5": "upper anterior left chest",
    "L6": "lower anterior left chest",
    "L7": "upper lateral left chest",
    "L8": "lower lateral left chest",
}
PHASES = {"I": "inspiration", "E": "expiration"}
SOUNDS = {"D": "crackle", "Wheeze": "wheeze", "Rhonchi": "rhonchus", "Stridor": "stridor"}
FINDINGS = {"crackle": "crackles", "wheeze": "wheezes", "rhonchus": "rhonchi", "stridor": "stridor"}
_NAME = re.compile(
    r"(?P<kind>steth)_(?P<day>[0-9]{8})(_[0-9]{2}){3}"
    r"|(?P<kind2>trunc)_(?P<day2>[0-9]{4}-[0-9]{2}-[0-9]{2})(-[0-9]{2}){3}-(?P<site>[A-Za-z]+[0-9]*)_[0-9]+"
)
_ROW = re.compile(r"(?P<label>\w+)\s+(?P<start>[0-9:.]+)\s+(?P<end>[0-9:.]+)")
_TIME = re.compile(r"([0-9]{2}):([0-5][0-9]):([0-5][0-9](?:\.[0-9]{1,9})?)")


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = list(folder.files())
    there = set(names)
    for name in require_any(audio_files(names), lambda name: _NAME.fullmatch(stem(name)), "HF_Lung"):
        match = _NAME.fullmatch(stem(name))
        if match is None:
            yield Reject(name, 0, "the name is not steth_day_time or trunc_day-time-site_piece")
            continue
        events = annotation(folder, there, f"{name.rpartition('.')[0]}_label.txt", _events)
        if isinstance(events, Reject):
            yield events
            continue
        kind = match["kind"] or match["kind2"]
        yield Recording(
            name, DATASET, "lung", f"{kind}_{match['day'] or match['day2']}", LICENCE,
            site=SITES.get(match["site"] or ""), device=DEVICES[kind],
            labels=_labels(events), events=events, split=_split(name),
        )  # fmt: skip


def _events(text: str) -> tuple[Event, ...]:
    events = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            events.append(_event(line.strip()))
        except ValueError as error:
            raise ValueError(f"line {number} {error}: {line[:80]!r}") from None
    return tuple(sorted(events, key=lambda event: event.start))


def _event(row: str) -> Event:
    match = _ROW.fullmatch(row)
    label = (PHASES | SOUNDS).get(match["label"]) if match else None
    if match is None or label is None:
        raise ValueError("is not a known label with its start and end")
    start, end = _seconds(match["start"]), _seconds(match["end"])
    if end < start:
        raise ValueError("ends before its start")
    return Event(start, end, label)


def _seconds(time: str) -> float:
    match = _TIME.fullmatch(time)
    if match is None:
        raise ValueError("has a time that is not like 00:00:01.234")
    hours, minutes, seconds = match.groups()
    return round(int(hours) * 3600 + int(minutes) * 60 + float(seconds), 9)


def _labels(events: tuple[Event, ...]) -> dict[str, str]:
    """Nothing for a recording without any event: not even its breaths were labelled."""
    if not events:
        return {}
    sounds = sorted({FINDINGS[event.label] for event in events if event.label in FINDINGS})
    return {
        STATUS: "abnormal" if sounds else "normal",
        FINDING: " and ".join(sounds) or "no added sounds",
    }


def _split(name: str) -> Literal["train", "test"] | None:
    """By the innermost folder that names one."""
    for part in reversed(PurePosixPath(name.lower()).parent.parts):
        if part == "train":
            return "train"
        if part == "test":
            return "test"
    return None
