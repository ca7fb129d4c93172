"""One labelled recording, as every reader describes it, whichever publisher it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stetholm.audio.event import Event

__all__ = ["DIAGNOSIS", "FINDING", "STATUS", "Event", "Recording"]

Kind = Literal["heart", "lung", "cough", "breath"]
Status = Literal["normal", "abnormal"]
Distribution = Literal["ID", "OOD"]

STATUS, FINDING, DIAGNOSIS = "status", "finding", "diagnosis"
"""Labels of one meaning in all datasets: ``normal`` or ``abnormal``; what is heard, a noun phrase; the disease."""


@dataclass(frozen=True)
class Recording:
    """A recording and what its publisher says of it. Its id, the SHA-256 of its file, is known once it is read.

    Attributes:
        filename: below the publisher's folder.
        dataset: name in the ``dataset`` column, as StethoBench writes it, e.g. ``icbhi`` or ``heart-circor``.
        kind: what sounds.
        patient: who it is of, unique within the dataset; where the publisher does not say, what is known to keep
            recordings of one person together (a day's session), else the recording's own name.
        licence: an SPDX identifier where there is one, e.g. ``CC-BY-4.0``.
        site: where on the body, in words, e.g. ``anterior left chest`` or ``mitral area``; None if unknown.
        device: what it was recorded with; None if unknown.
        labels: by name; ``status``, ``finding`` and ``diagnosis`` mean the same everywhere, the others
            (``severity``, ``sex``, ``quality`` ...) are the publisher's.
        events: timed, in order of their start.
        split: the publisher's own, ``train``, ``val`` or ``test``; None where there is none.
        distribution: ``OOD`` for the paper's out-of-domain sets.
    """

    filename: str
    dataset: str
    kind: Kind
    patient: str
    licence: str
    site: str | None = None
    device: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    split: Literal["train", "val", "test"] | None = None
    distribution: Distribution = "ID"
