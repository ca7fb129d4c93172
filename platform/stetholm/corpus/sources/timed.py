"""Timed annotations of a recording, checked: what several publishers write as ``start end label``."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from typing import TypeVar

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import Event
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.tables import read_text
from stetholm.errors import UserError

T = TypeVar("T")


def timed(start: str, end: str, label: str) -> Event:
    """An event from two times in seconds as written.

    Raises:
        ValueError: a time is no number, negative or infinite, or the end comes before the start.
    """
    event = Event(float(start), float(end), label)
    if not 0 <= event.start <= event.end < math.inf:
        raise ValueError(f"{start[:40]!r} to {end[:40]!r} is no span of time")
    return event


def in_order(events: Iterable[Event]) -> tuple[Event, ...]:
    """``events`` in order of their start."""
    return tuple(sorted(events, key=lambda event: event.start))


def timed_rows(text: str, labels: Mapping[str, str | None]) -> tuple[Event, ...]:
    """Events of rows ``start end code``, separated by blanks or tabs.

    Args:
        text: the annotation.
        labels: by code; rows of a code whose label is None are left out.

    Raises:
        ValueError: a row is not of this form, or its code is unknown.
    """
    events = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            start, end, code = line.split()
            label = labels[code]
            event = timed(start, end, label or "")
        except (ValueError, KeyError):
            raise ValueError(f"line {number} is not 'start end code' in seconds: {line[:80]!r}") from None
        if label is not None:
            events.append(event)
    return in_order(events)


def annotation(folder: AudioFolder, there: Container[str], name: str, parse: Callable[[str], T]) -> T | Reject:
    """What ``parse`` makes of the annotation ``name`` of a recording, or why there is none to go by.

    Args:
        folder: where it lies.
        there: names of all files.
        name: of the annotation.
        parse: raises a ValueError that says what is wrong.
    """
    if name not in there:
        return Reject(name, 0, "is not there, though its recording is")
    try:
        return parse(read_text(folder, name))
    except (ValueError, UserError) as error:
        return Reject(name, 0, str(error))
