"""What the labels of a recording say, as concepts of the ontology."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stetholm.corpus.assertion import BOTH, Assertion, assertions
from stetholm.corpus.labels import findings
from stetholm.corpus.ontology import Kind, normalise, ontology
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Recording

_OTHER_DISEASE = re.compile(r"\b(disease|illness|infection)s? other than [^,.;:!?]+", re.IGNORECASE)
NORMAL_SOUND = "that the sound is normal"
_WORD = re.compile(r"[a-z0-9']{4,}")


@dataclass(frozen=True)
class Expected:
    """The labels of one recording.

    Attributes:
        status: ``normal``, ``abnormal`` or None.
        findings: the most specific findings that the labels name.
        diagnoses: likewise.
        supported: all that the labels support: those, and what they imply.
        sites: where it was recorded, as concepts.
    """

    status: str | None
    findings: frozenset[str]
    diagnoses: frozenset[str]
    supported: frozenset[str]
    sites: frozenset[str]

    @classmethod
    def of(cls, recording: Recording) -> Expected:
        """What is to be expected of a text about ``recording``."""
        known, labels = ontology(), recording.labels
        heard, disease = concepts(labels.get(FINDING)), concepts(labels.get(DIAGNOSIS))
        own = {"cough"} if recording.kind == "cough" else set()
        if "normal" in disease or _denies_disease(labels.get(DIAGNOSIS)):
            own.add("healthy")
        supported = known.closure(heard | disease | own)
        return cls(
            labels.get(STATUS), known.leaves(heard, "finding"), known.leaves(disease, "diagnosis"), supported,
            frozenset(mention.concept for mention in known.mentions(recording.site or "")
                      if known.kind(mention.concept) == "site"),
        )  # fmt: skip


def concepts(label: str | None) -> frozenset[str]:
    """The concepts that a label asserts."""
    return findings(plain(label)) if label else frozenset()


def plain(text: str) -> str:
    """``text`` without what a disease is not: "respiratory disease other than COVID-19" is a respiratory disease."""
    return _OTHER_DISEASE.sub(r"\1", text)


def says(text: str, group: Sequence[Assertion], label: str, kind: Kind) -> str | None:
    """What of a label the text does not say; None if it says all.

    A label that the ontology does not know is looked for by its words.
    """
    known, named = ontology(), concepts(label)
    leaves = known.leaves(named, kind)
    if leaves:
        told = known.closure(one.concept for one in group if one.state in ("asserted", "possible"))
        missing = sorted(leaves - told)
        return missing[0] if missing else None
    if "normal" in named:
        return None if "normal" in findings(text) else NORMAL_SOUND
    if _denies_disease(label):
        fine = findings(text) & {"normal", "healthy"} or any(
            one.state == "negated" and known.kind(one.concept) == "diagnosis" for one in group
        )
        return None if fine else label
    lowered = normalise(text)
    words = _WORD.findall(normalise(label))
    return None if all(word in lowered for word in words) else label


def _denies_disease(label: str | None) -> bool:
    """Whether a diagnosis says that there is none ("no lung disease")."""
    told = assertions(label or "")
    return bool(told) and all(one.state == "negated" for one in told)


def of_recording(group: Sequence[Assertion], number: int) -> list[Assertion]:
    """The assertions of a comparison about recording ``number``, or about both."""
    return [one for one in group if one.recording in (number, BOTH)]
