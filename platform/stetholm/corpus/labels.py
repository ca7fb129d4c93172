"""Labels in free text: what an answer asserts, and whether it says the same as the reference.

The rule of :func:`label_match`: the decisive label is the most specific kind that the reference asserts (its diagnosis,
else its findings, else normal or abnormal). The prediction must assert it, a more specific finding counting as the
finding, and must contradict none of the reference's labels. So "label accuracy" is a figure of what is heard and
concluded, not of wording.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import lru_cache
from typing import Literal

from stetholm.corpus.assertion import BOTH, Assertion, assertions
from stetholm.corpus.ontology import Kind, ontology

DECISIVE: tuple[Kind, ...] = ("diagnosis", "finding", "status")
"""Kinds of label from the most to the least specific."""

_POLARITY = re.compile(r"\s*(yes|no)\b(?=\s*[,.;:!]|\s*$)", re.IGNORECASE)


def findings(text: str) -> frozenset[str]:
    """Concepts that ``text`` asserts, with all they imply ("holosystolic murmur": murmur, abnormal ...).

    Negated mentions, questions and causes named as less likely are left out. A text that names only healthy parts or
    the absence of findings asserts "normal".
    """
    return frozenset().union(*findings_by_recording(text).values())


@lru_cache(maxsize=16384)
def _by_recording(text: str) -> tuple[tuple[int, frozenset[str]], ...]:
    groups: dict[int, list[Assertion]] = defaultdict(list)
    for assertion in assertions(text):
        for number in (1, 2) if assertion.recording == BOTH else (assertion.recording,):
            groups[number].append(assertion)
    return tuple((number, _asserted(group)) for number, group in groups.items())


def findings_by_recording(text: str) -> dict[int, frozenset[str]]:
    """Like :func:`findings`, for each recording a comparison names (0: none named)."""
    return dict(_by_recording(text))


def _asserted(group: list[Assertion]) -> frozenset[str]:
    """Closure of what a group asserts, with the status that absences and healthy parts give."""
    known = ontology()
    names = {a.concept for a in group if a.state == "asserted"}
    if not any(known.kind(name) == "diagnosis" for name in names):
        names |= {a.concept for a in group if a.state == "possible"}
    negated = {a.concept for a in group if a.state == "negated"}
    if "normal" in negated:
        names.add("abnormal")
    closed = known.closure(names)
    absent = any("abnormal" in known.closure([name]) for name in negated)
    components = any(known.kind(name) == "component" for name in closed)
    if (absent or components) and not closed & {"abnormal", "normal"}:
        closed |= {"normal"}
    return frozenset(name for name in closed if known.kind(name) != "component")


def status(text: str) -> Literal["normal", "abnormal"] | None:
    """Whether ``text`` calls the sound normal or abnormal; None where it says neither, or both."""
    found = findings(text) & {"normal", "abnormal"}
    if len(found) != 1:
        return None
    return "normal" if "normal" in found else "abnormal"


def _compatible(kind: Kind, predicted: frozenset[str], expected: frozenset[str]) -> bool:
    """No label of ``kind`` in the prediction is foreign to the reference, where the reference has such labels."""
    known = ontology()
    ours, theirs = known.leaves(predicted, kind), known.leaves(expected, kind)
    return not theirs or all(any(known.related(one, other) for other in theirs) for one in ours)


def _same(predicted: frozenset[str], expected: frozenset[str], kinds: tuple[Kind, ...]) -> bool | None:
    """The rule in the module's docstring, for one recording; None where the reference has no label."""
    decisive = next((kind for kind in kinds if ontology().leaves(expected, kind)), None)
    if decisive is None:
        return None
    covered = ontology().leaves(expected, decisive) <= predicted
    return covered and all(_compatible(kind, predicted, expected) for kind in ("status", *kinds))


def _polarity(text: str) -> str | None:
    """A leading "yes" or "no"."""
    hit = _POLARITY.match(text)
    return hit[1].lower() if hit else None


def label_match(task: str, prediction: str, reference: str) -> bool | None:
    """Whether the prediction carries the reference's label (see the module's docstring).

    In comparisons every recording's label must match. In location answers a site, where the reference has nothing
    more telling, is the label, and no other site may be named. A bare "yes" or "no" is compared as such.

    Returns:
        None where the reference holds no label, so that the example does not count.
    """
    kinds: tuple[Kind, ...] = (*DECISIVE, "site") if task == "Location" else DECISIVE
    if task == "Comparison" and set(findings_by_recording(reference)) - {0}:
        return _same_recordings(prediction, reference, kinds)
    same = _same(findings(prediction), findings(reference), kinds)
    if same is None and _polarity(reference):
        return _polarity(prediction) == _polarity(reference)
    return same


def _same_recordings(prediction: str, reference: str, kinds: tuple[Kind, ...]) -> bool | None:
    """Every recording that the reference labels is labelled alike."""
    ours, theirs = findings_by_recording(prediction), findings_by_recording(reference)
    verdicts = [_same(ours.get(number, frozenset()), labels, kinds) for number, labels in theirs.items() if number]
    known = [verdict for verdict in verdicts if verdict is not None]
    return all(known) if known else None
