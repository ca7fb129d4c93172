"""The deterministic writer: the wordings of ``corpus.templates``, from the labels alone. Free, and always valid."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from stetholm.corpus import templates
from stetholm.corpus.labelled import answers
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Recording
from stetholm.corpus.synthesis.plan import COMPARISON, Planned, basis

NAME = "templates"
"""The ``model`` of its pairs."""


def write(planned: Planned, seed: int) -> str:
    """A pair in the form that every writer answers in."""
    first = planned.recordings[0]
    digest = hashlib.sha256(f"{seed}/{planned.name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16]))
    question = templates.phrasing(planned.task, first.kind, first.site or "", rng)
    answer = _compare(planned) if planned.task == COMPARISON else _answer(planned)
    return json.dumps({"instruction": question, "response": answer}, ensure_ascii=False)


def _case(recording: Recording) -> templates.Case | None:
    labels = recording.labels
    condition = templates.NORMAL if labels.get(STATUS) == templates.NORMAL else labels.get(DIAGNOSIS, "")
    case = templates.Case.of(recording.kind, condition, labels.get(FINDING, ""), recording.site)
    # The words of a case end in a diagnosis: the labels must have it.
    return case if case and case.wording.diagnosis == labels.get(DIAGNOSIS) else None


def _answer(planned: Planned) -> str:
    recording = planned.recordings[0]
    labels, case = recording.labels, _case(recording)
    if case is not None:
        return templates.response(planned.task, case)
    if planned.task == "Differential Diagnosis":
        return templates.differential(
            recording.kind, labels.get(STATUS), labels.get(FINDING), labels.get(DIAGNOSIS)
        )  # fmt: skip
    return answers(recording)[planned.task]


def _compare(planned: Planned) -> str:
    one, other = planned.recordings
    cases = _case(one), _case(other)
    if cases[0] is not None and cases[1] is not None:
        return templates.comparison(cases[0], cases[1])
    label = basis(one, other)
    if label is None:
        raise ValueError(f"{planned.name}: the recordings have no label in common")
    return templates.contrast(label, one.labels[label], other.labels[label])
