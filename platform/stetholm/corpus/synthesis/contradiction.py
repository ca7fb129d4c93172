"""Whether a text contradicts the labels, or claims what they do not say. Negation-aware."""

from __future__ import annotations

from collections.abc import Sequence

from stetholm.corpus.assertion import Assertion
from stetholm.corpus.ontology import ontology
from stetholm.corpus.synthesis.expected import Expected


def contradiction(group: Sequence[Assertion], expected: Expected, open_diagnosis: bool = False) -> str | None:
    """Why what ``group`` asserts cannot stand beside the labels, in one clause; None if it can.

    Args:
        group: the assertions of a text about one recording.
        expected: its labels.
        open_diagnosis: whether diseases may be named as possible, or listed where the labels know none.
    """
    return (
        _status(group, expected)
        or _unsupported(group, expected, open_diagnosis)
        or _denied(group, expected)
    )  # fmt: skip


def _status(group: Sequence[Assertion], expected: Expected) -> str | None:
    """Normal against abnormal. What is said of a disease says nothing of the sound."""
    known, told = ontology(), set()
    for one in group:
        if one.concept in ("normal", "abnormal"):
            other = "abnormal" if one.concept == "normal" else "normal"
            told |= {one.concept} if one.state == "asserted" else {other} if one.state == "negated" else set()
        elif known.kind(one.concept) == "finding" and one.state == "asserted":
            told |= known.closure([one.concept]) & {"abnormal"}
    if len(told) == 2:
        return "it calls the sound both normal and abnormal"
    if expected.status in ("normal", "abnormal") and told - {expected.status}:
        return f"it says that the sound is {told.pop()}, but it is {expected.status}"
    return None


def _unsupported(group: Sequence[Assertion], expected: Expected, open_diagnosis: bool) -> str | None:
    """What is beyond the labels, be it only possible ("cannot be excluded"); a differential may weigh diseases."""
    known = ontology()
    causes_only = open_diagnosis and not expected.diagnoses and expected.status != "normal"
    for one in group:
        kind = known.kind(one.concept)
        if kind == "diagnosis" and causes_only:
            continue
        weighed = open_diagnosis and kind == "diagnosis" and one.state in ("possible", "alternative")
        claimed = one.state != "negated" and not weighed
        if kind in ("finding", "diagnosis") and claimed and one.concept not in expected.supported:
            return f"it claims {one.concept}, of which the facts say nothing"
        if kind == "site" and claimed and expected.sites and one.concept not in known.closure(expected.sites):
            return f"it names another place, {one.concept}"
    return None


def _denied(group: Sequence[Assertion], expected: Expected) -> str | None:
    """A negation that takes back a label: "no crackles" where there are fine crackles."""
    known = ontology()
    for one in group:
        if one.state == "negated":
            for label in (*expected.findings, *expected.diagnoses):
                if one.concept in known.ancestors(label):
                    return f"it denies {label}, which is there"
    return None
