"""From what a writer answers to a pair that may be trained on, or the rule that it breaks.

The rules, in order: ``form`` (the JSON object that was asked for), ``text`` (within bounds, about the sound), ``leak``
(the question gives nothing away), ``task`` (question and answer fit their task), ``labels`` (the answer contradicts no
label and claims nothing beyond them, neither findings nor a patient's age, sex or rates).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from stetholm.corpus.assertion import Assertion, assertions
from stetholm.corpus.ontology import normalise, ontology
from stetholm.corpus.recording import DIAGNOSIS, FINDING
from stetholm.corpus.synthesis.contradiction import contradiction
from stetholm.corpus.synthesis.expected import Expected, of_recording, plain
from stetholm.corpus.synthesis.fit import misfit
from stetholm.corpus.synthesis.invention import invention
from stetholm.corpus.synthesis.plan import COMPARISON, Planned
from stetholm.corpus.synthesis.prompts import facts

Rule = Literal["form", "text", "leak", "task", "labels"]
INSTRUCTION_CHARS = (10, 400)
RESPONSE_CHARS = (3, 1500)
FENCE = re.compile(r"^\s*```(?:json)?\s*\n?(.*?)\n?\s*```\s*$", re.DOTALL)
_ABOUT_THE_TASK = re.compile(
    r"\b(?:labels?|labell?ed|metadata|annotat\w+|the facts|json|language model|as an ai|i (?:can(?:no|')t|am unable)"
    r"|placeholder|instruction|according to (?:the|an) expert)\b|[<>{}]|\$\w",
    re.IGNORECASE,
)
_HARMLESS = frozenset({"adventitious sound", "heart finding", "heart disease", "lung disease", "valvular disease"})
"""Words of open questions ("which added sounds are there?")."""


@dataclass(frozen=True)
class Draft:
    """A valid pair's texts."""

    instruction: str
    response: str


@dataclass(frozen=True)
class Fault:
    """The rule that an answer breaks, and how, in a clause that the writer is told."""

    rule: Rule
    reason: str


def validate(planned: Planned, answer: str) -> Draft | Fault:
    """The pair in ``answer``, or the first rule that it breaks."""
    parsed = parse(answer)
    if isinstance(parsed, Fault):
        return parsed
    if reason := _bounds(parsed):
        return Fault("text", reason)
    if reason := _leak(planned, parsed.instruction):
        return Fault("leak", reason)
    if reason := _invents(planned, parsed):
        return Fault("labels", reason)
    group = assertions(plain(parsed.response))
    if reason := _contradicts(planned, group):
        return Fault("labels", reason)
    if reason := misfit(planned, parsed.instruction, parsed.response, group):
        return Fault("task", reason)
    return parsed


def parse(answer: str) -> Draft | Fault:
    """The JSON object of an answer, alone or in a Markdown fence."""
    fenced = FENCE.match(answer)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return Fault("form", "the reply is not one JSON object and nothing else")
    given = [found.get(key) for key in ("instruction", "response")] if isinstance(found, dict) else []
    texts = [text for text in given if isinstance(text, str) and text.strip()]
    if len(texts) != 2:
        return Fault("form", 'the JSON object does not have the texts "instruction" and "response"')
    return Draft(*(" ".join(text.split()) for text in texts))


def _bounds(draft: Draft) -> str | None:
    parts = (("question", draft.instruction, INSTRUCTION_CHARS), ("answer", draft.response, RESPONSE_CHARS))
    for name, text, (least, most) in parts:
        if not least <= len(text) <= most:
            return f"the {name} has {len(text)} characters, which is not {least} to {most}"
        if not text.isprintable():
            return f"the {name} holds a character that cannot be printed"
        if hit := _ABOUT_THE_TASK.search(text):
            return f"the {name} is not about the sound alone ({hit[0]!r})"
    return None


def _leak(planned: Planned, instruction: str) -> str | None:
    """What the question tells of the answer: a label named without an alternative beside it."""
    known = ontology()
    named = {mention.concept for mention in known.mentions(instruction)}
    states = named & {"normal", "abnormal"}
    if len(states) == 1:
        return f"the question says {states.pop()}: name both choices, or neither"
    for recording in planned.recordings:
        expected = Expected.of(recording)
        for label in (*expected.findings, *expected.diagnoses):
            if label == recording.kind:
                continue  # that a cough is to be heard is no secret
            kind = known.kind(label)
            told = {one for one in named - _HARMLESS if known.kind(one) == kind and known.related(one, label)}
            others = {one for one in named if known.kind(one) == kind and not known.related(one, label)}
            if told and not others:
                return f"the question gives {min(told)} away"
        for name in (FINDING, DIAGNOSIS):  # words that the ontology does not know
            value = recording.labels.get(name)
            if value and not known.mentions(value) and normalise(value) in normalise(instruction):
                return f"the question gives {value!r} away"
    return None


def _invents(planned: Planned, draft: Draft) -> str | None:
    """What of the patient or in numbers the texts add."""
    known = facts(planned)
    for name, text in (("question", draft.instruction), ("answer", draft.response)):
        if found := invention(text, known):
            return f"the {name} tells {found!r}, of which the facts say nothing"
    return None


def _contradicts(planned: Planned, group: list[Assertion]) -> str | None:
    if planned.task != COMPARISON:
        open_diagnosis = planned.task == "Differential Diagnosis"
        return contradiction(group, Expected.of(planned.recordings[0]), open_diagnosis)
    for number, recording in enumerate(planned.recordings, start=1):
        if reason := contradiction(of_recording(group, number), Expected.of(recording)):
            return f"of audio {number}: {reason}"
    loose = [one for one in group if one.recording == 0]
    reasons = [contradiction(loose, Expected.of(recording)) for recording in planned.recordings]
    return reasons[0] if all(reasons) else None
