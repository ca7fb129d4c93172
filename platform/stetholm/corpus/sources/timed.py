"""Timed annotations of a recording, checked: what several publishers write as ``start end label``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from stetholm.corpus.recording import Event


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
