"""Something heard between two times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One labelled stretch of a recording.

    Attributes:
        start: seconds from the start of the recording.
        end: the same; not before ``start``.
        label: what it is, e.g. ``wheeze``, ``crackle``, ``inspiration``, ``S1``.
    """

    start: float
    end: float
    label: str
