"""FluSense: AudioSet clips (``<video>_30_000-40_000.wav``, or a whole ``<video>.wav``) and a ``.TextGrid`` each.

The annotations are Praat's long text form: intervals with ``xmin``, ``xmax`` (seconds) and ``text``, the label. They
come in a repository of their own, so those of a clip are found by its name, wherever they lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import FINDING, Event, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import audio_files, read_text, require_any, stem
from stetholm.corpus.sources.timed import in_order, timed
from stetholm.errors import UserError

DATASET, LICENCE = "flusense", "NOASSERTION"
SOUNDS = {
    "cough": "coughs",
    "sneeze": "sneezes",
    "sniffle": "sniffles",
    "throat-clearing": "throat clearing",
    "wheeze": "wheezing",
    "gasp": "gasps",
    "breathe": "breathing",
    "snore": "snoring",
    "hiccup": "hiccups",
    "burp": "burps",
    "vomit": "vomiting",
    "speech": "speech",
}
"""What is heard, by label, the most telling first."""
OTHERS = {"throat-clearing": "throat clearing", "etc": "other sound", "silence": "silence"}
"""Labels of events that are not words of their own."""
_NAME = re.compile(r"(?P<video>[\w-]{11})(?:_\d+_\d{3}-\d+_\d{3})?")
_INTERVAL = re.compile(r'intervals \[\d+\]:\s+xmin = (\S+)\s+xmax = (\S+)\s+text = "([^"\n]*)"')


def read(folder: AudioFolder) -> Iterator[Recording | Reject]:
    """Every recording below the folder; see :class:`stetholm.corpus.source.Publication`."""
    names = list(folder.files())
    grids = {stem(name): name for name in names if name.endswith(".TextGrid")}
    audio = require_any(audio_files(names), lambda name: stem(name) in grids and _NAME.fullmatch(stem(name)), DATASET)
    for name in audio:
        yield _recording(folder, name, grids.get(stem(name)))


def _recording(folder: AudioFolder, name: str, grid: str | None) -> Recording | Reject:
    match = _NAME.fullmatch(stem(name))
    if match is None:
        return Reject(name, 0, "the name is not video or video_start-end")
    if grid is None:
        return Reject(name, 0, f"there is no {stem(name)}.TextGrid with its events")
    try:
        events, heard = _events(read_text(folder, grid))
    except (ValueError, UserError) as error:
        return Reject(grid, 0, str(error))
    finding = " and ".join(words for label, words in SOUNDS.items() if label in heard)
    return Recording(
        name, DATASET, "cough", match["video"], LICENCE,
        labels={FINDING: finding or "neither coughs nor speech"}, events=events, distribution="OOD",
    )  # fmt: skip


def _events(text: str) -> tuple[tuple[Event, ...], set[str]]:
    """The events of an annotation and the labels among them; an interval without a label is none."""
    events, heard = [], set()
    for start, end, label in _INTERVAL.findall(text):
        label = label.strip().lower()
        if not label:
            continue
        if label not in SOUNDS and label not in OTHERS:
            raise ValueError(f"its label {label[:40]!r} is unknown")
        try:
            events.append(timed(start, end, OTHERS.get(label, label)))
        except ValueError:
            raise ValueError(f"the interval {start[:40]!r} to {end[:40]!r} is no span of time") from None
        heard.add(label)
    if not events:
        raise ValueError("it has no labelled interval")
    return in_order(events), heard
