"""Whether a question and its answer are of their task. A function a task; each gives the reason if they are not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from stetholm.corpus.assertion import BOTH, Assertion
from stetholm.corpus.ontology import Kind, normalise, ontology
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Recording
from stetholm.corpus.synthesis.expected import NORMAL_SOUND, of_recording, says
from stetholm.corpus.synthesis.plan import COMPARISON, Planned
from stetholm.settings import Task

MIN_CAUSES = 2
_REASONS = re.compile(
    r"\b(?:because|since|due to|as (?:it|there|the)|consistent|indicat\w*|suggest\w*|explain\w*|typical\w*|result\w*"
    r"|caus\w*|characteristic\w*|shows?|reflect\w*|reveal\w*|support\w*|points? to|heard|hear)\b"
)
_NOUN = r"(?:audio|recording|clip|sample|sound|track)"
_NUMBERED = re.compile(rf"\b{_NOUN}\s+(1|2|one|two)\b|\b(first|second)\s+{_NOUN}\b")
_TOGETHER = re.compile(rf"\b(?:two|both|these)\b.*\b{_NOUN}s\b|\b{_NOUN}s\b.*\b(?:1|2|one|two)\b")
_ORDER = {"1": 1, "one": 1, "first": 1, "2": 2, "two": 2, "second": 2}
_NOT_DENIED = frozenset({"asserted", "possible", "alternative"})

Group = Sequence[Assertion]


def misfit(planned: Planned, instruction: str, response: str, group: Group) -> str | None:
    """Why the pair is none of its task, in one clause; None if it is.

    Args:
        planned: the pair that was asked for.
        instruction: the question.
        response: the answer.
        group: what the answer asserts.
    """
    if planned.task != COMPARISON and any(one.recording not in (0, 1, BOTH) for one in group):
        return "the answer speaks of another recording, but there is only one"
    return _RULES[planned.task](planned, instruction, response, group)


def _classification(planned: Planned, instruction: str, response: str, group: Group) -> str | None:
    choices = {mention.concept for mention in ontology().mentions(instruction)}
    if not {"normal", "abnormal"} <= choices:
        return "the question does not offer the choice of normal or abnormal"
    if not {one.concept for one in group} & {"normal", "abnormal"}:
        return "the answer says neither normal nor abnormal"
    return _unsaid(planned.recordings[0], STATUS, response, group)


def _identification(planned: Planned, instruction: str, response: str, group: Group) -> str | None:
    return _unsaid(planned.recordings[0], FINDING, response, group)


def _report(planned: Planned, instruction: str, response: str, group: Group) -> str | None:
    recording = planned.recordings[0]
    return _unsaid(recording, STATUS, response, group) or _unsaid(recording, FINDING, response, group)


def _reasoning(planned: Planned, instruction: str, response: str, group: Group) -> str | None:
    if problem := _unsaid(planned.recordings[0], DIAGNOSIS, response, group):
        return problem
    return None if _REASONS.search(response.lower()) else "the answer gives no reason for the diagnosis"


def _differential(planned: Planned, instruction: str, response: str, group: Group) -> str | None:
    recording = planned.recordings[0]
    diseases = _diseases(group, _NOT_DENIED)
    if recording.labels.get(DIAGNOSIS):
        first = [one for one in group if one.state != "alternative"]
        if problem := _unsaid(recording, DIAGNOSIS, response, first):
            return problem
    if recording.labels.get(STATUS) == "normal":  # what is unlikely is named enough
        diseases = _diseases(group, {*_NOT_DENIED, "negated"})
        return None if diseases else "the answer weighs no disease"
    return None if len(diseases) >= MIN_CAUSES else f"the answer names fewer than {MIN_CAUSES} causes"


def _location(planned: Planned, instruction: str, response: str, group: Group) -> str | None:
    recording = planned.recordings[0]
    for where, text in (("question", instruction), ("answer", response)):
        if not _names_site(text, recording.site or ""):
            return f"the {where} does not name the {recording.site}"
    return _unsaid(recording, FINDING, response, group)


def _comparison(planned: Planned, instruction: str, response: str, group: Group) -> str | None:
    question = instruction.lower()
    numbers = {_ORDER[hit[1] or hit[2]] for hit in _NUMBERED.finditer(question)}
    if len(numbers) < 2 and not _TOGETHER.search(question):
        return "the question does not speak of two recordings"
    for number, recording in enumerate(planned.recordings, start=1):
        own = of_recording(group, number)
        labels = [label for label in (DIAGNOSIS, FINDING, STATUS) if recording.labels.get(label)]
        if all(_unsaid(recording, label, response, own, alone=False) for label in labels):
            return f"the answer does not say what audio {number} shows"
    return None


_RULES: Mapping[Task, Callable[[Planned, str, str, Group], str | None]] = {
    "Classification": _classification,
    "Identification": _identification,
    "Report": _report,
    "Reasoning": _reasoning,
    "Differential Diagnosis": _differential,
    "Location": _location,
    "Comparison": _comparison,
}


def _unsaid(recording: Recording, label: str, response: str, group: Group, alone: bool = True) -> str | None:
    """What of a label the answer does not say; ``alone``: the whole answer is about this recording."""
    value = recording.labels[label]
    if label == STATUS:
        return None if _status_said(value, group) else f"the answer does not say that the sound is {value}"
    kind: Kind = "finding" if label == FINDING else "diagnosis"
    if not alone and ontology().mentions(value):
        response = ""  # its words may be about the other recording: only what is asserted of this one counts
    missing = says(response, group, value, kind)
    if missing == NORMAL_SOUND and _status_said("normal", group):
        return None
    return f"the answer does not name {missing}" if missing else None


def _status_said(status: str, group: Group) -> bool:
    """Whether the sound is called so, be it by what it is not, by healthy parts, or by a finding."""
    known = ontology()
    asserted = known.closure(one.concept for one in group if one.state == "asserted")
    negated = {one.concept for one in group if one.state == "negated"}
    if status == "abnormal":
        return "abnormal" in asserted or "normal" in negated
    absent = any("abnormal" in known.closure([name]) for name in negated)
    healthy = any(known.kind(name) == "component" for name in asserted)
    return "normal" in asserted or ((absent or healthy) and "abnormal" not in asserted)


def _diseases(group: Group, states: frozenset[str] | set[str]) -> set[str]:
    """Different diseases that are named in one of ``states``; a group of diseases beside its member counts once."""
    known = ontology()
    return set(known.leaves({one.concept for one in group if one.state in states}, "diagnosis"))


def _names_site(text: str, site: str) -> bool:
    known = ontology()
    concepts = {mention.concept for mention in known.mentions(site) if known.kind(mention.concept) == "site"}
    named = {mention.concept for mention in known.mentions(text)}
    return normalise(site) in normalise(text) or (bool(concepts) and concepts <= named)
