"""SPRSound, children's lung sounds: ``65101170_0.4_1_p1_3246.wav`` and a ``.json`` of that name in another folder.

A name is ``patient_age_sex_site_recording``; newer releases withhold some patients (``_5.3_0_p8_34877.wav``). The JSON
holds a label of the whole recording (later releases leave it out) and events in milliseconds, written as strings. The
folders name the split: ``train2022_json``, ``test2022_json/inter_test_json`` and so on. A test recording of a patient
who is in training too (the ``intra`` test) has no split here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from os.path import commonprefix
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import FINDING, STATUS, Event, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import audio_files, read_text, require_any, stem
from stetholm.errors import UserError

DATASET, LICENCE, DEVICE = "sprsound", "CC-BY-4.0", "Yunting model II"
SITES = {
    "p1": "posterior left chest",
    "p2": "lateral left chest",
    "p3": "posterior right chest",
    "p4": "lateral right chest",
}
"""The publisher does not say where p5 to p8 are."""
SOUNDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Normal": ("no added sounds", ()),
    "Rhonchi": ("rhonchus", ("rhonchi",)),
    "Wheeze": ("wheeze", ("wheezes",)),
    "Stridor": ("stridor", ("stridor",)),
    "Coarse Crackle": ("coarse crackle", ("coarse crackles",)),
    "Fine Crackle": ("fine crackle", ("fine crackles",)),
    "Wheeze+Crackle": ("wheeze and crackle", ("crackles", "wheezes")),
}
"""The label of an event, and what a recording with one is found to have."""
FINDINGS = {
    "Normal": "no added sounds",
    "CAS": "continuous added sounds",
    "DAS": "crackles",
    "CAS & DAS": "continuous added sounds and crackles",
}
"""What the label of a recording says where its events say nothing."""
_NAME = re.compile(r"(?P<patient>[0-9]*)_(?P<age>[0-9]+(\.[0-9]+)?)_(?P<sex>[01])_(?P<site>p[1-8])_[0-9]+")
_FOLDER = re.compile(r"(?:^|/)(train|valid|test|inter|intra)(?=[^/]*/)")

Split = Literal["train", "val", "test"]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Sound(BaseModel):
    start: Milliseconds
    end: Milliseconds
    type: Literal["Normal", "Rhonchi", "Wheeze", "Stridor", "Coarse Crackle", "Fine Crackle", "Wheeze+Crackle"]


class _Annotation(BaseModel):
    # The publisher's description calls it ``recording_annotation``, the files do not.
    record: Literal["Normal", "CAS", "DAS", "CAS & DAS", "Poor Quality"] | None = Field(
        None, validation_alias=AliasChoices("record_annotation", "recording_annotation")
    )
    sounds: list[_Sound] = Field(validation_alias="event_annotation")


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = list(folder.files())
    recordings = require_any(audio_files(names), lambda name: _NAME.fullmatch(stem(name)), "SPRSound")
    annotations = _annotations(names)
    trained = _trained(annotations)
    for name in recordings:
        match = _NAME.fullmatch(stem(name))
        if match is None:
            yield Reject(name, 0, "the name is not patient_age_sex_site_recording")
            continue
        if stem(name) not in annotations:
            yield Reject(name, 0, f"there is no {stem(name)}.json with its label and events")
            continue
        path = _nearest(annotations[stem(name)], name)
        split = _split(path)
        try:
            annotation = _parse(read_text(folder, path))
        except (ValueError, UserError) as error:
            yield Reject(path, 0, str(error))
            continue
        yield Recording(
            name, DATASET, "lung", match["patient"] or stem(name), LICENCE,
            site=SITES.get(match["site"]), device=DEVICE, labels=_labels(match, annotation), events=_events(annotation),
            split=None if split != "train" and match["patient"] in trained else split,
        )  # fmt: skip


def _annotations(names: Sequence[str]) -> Mapping[str, list[str]]:
    """JSON files by their names without folder and suffix; several releases may hold one recording."""
    found: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith(".json"):
            found.setdefault(stem(name), []).append(name)
    return found


def _trained(annotations: Mapping[str, list[str]]) -> set[str]:
    """The patients of the training folders."""
    matches = (_NAME.fullmatch(key) for key, paths in annotations.items() if "train" in map(_split, paths))
    return {match["patient"] for match in matches if match and match["patient"]}


def _nearest(paths: Sequence[str], recording: str) -> str:
    """``a/test2022_json/inter_test_json/x.json`` for ``a/test2022_wav/x.wav``."""
    return max(paths, key=lambda path: len(commonprefix([path, recording])))


def _split(annotation: str) -> Split | None:
    """The split that the folders of an annotation name, the innermost one first."""
    splits: Mapping[str, Split] = {"train": "train", "valid": "val", "test": "test", "inter": "test"}
    named = _FOLDER.findall(annotation.lower())
    return splits.get(named[-1]) if named else None


def _parse(text: str) -> _Annotation:
    try:
        annotation = _Annotation.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}"[:300].removeprefix(": ")) from None
    for sound in annotation.sounds:
        if sound.end < sound.start:
            raise ValueError(f"an event ends at {sound.end:g} ms, before its start at {sound.start:g} ms")
    return annotation


def _events(annotation: _Annotation) -> tuple[Event, ...]:
    events = (Event(sound.start / 1000, sound.end / 1000, SOUNDS[sound.type][0]) for sound in annotation.sounds)
    return tuple(sorted(events, key=lambda event: event.start))


def _labels(name: re.Match[str], annotation: _Annotation) -> dict[str, str]:
    """The recording's own label decides whether it is normal; its events say what is heard."""
    labels = {"age": name["age"], "sex": "female" if name["sex"] == "1" else "male"}
    record = annotation.record
    sounds = sorted({each for sound in annotation.sounds for each in SOUNDS[sound.type][1]})
    if record is not None:
        labels["quality"] = "poor" if record == "Poor Quality" else "good"
    if record == "Poor Quality" or (record is None and not annotation.sounds):
        return labels
    normal = record == "Normal" or (record is None and not sounds)
    labels[STATUS] = "normal" if normal else "abnormal"
    labels[FINDING] = FINDINGS["Normal"] if normal else " and ".join(sounds) or FINDINGS[str(record)]
    return labels
