"""Question-answer pairs written from the true labels of a recording, in StethoBench's tone.

The wording is consistent on purpose: a parser finds normal or abnormal in the first sentence of a
classification or a report, and every finding and every diagnosis has exactly one name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from stetholm.corpus.ontology import ontology
from stetholm.settings import Task

Kind = Literal["heart", "lung"]
NORMAL = "normal"


@dataclass(frozen=True)
class Wording:
    """How a condition is put into words.

    Attributes:
        finding: what is heard, as a noun phrase.
        diagnosis: its name; that of a normal recording is "normal heart sounds" or "normal lung sounds".
        reason: why the finding leads to the diagnosis, a clause.
        alternatives: what else could sound alike; never another condition of this table.
    """

    finding: str
    diagnosis: str
    reason: str
    alternatives: str


WORDINGS: dict[Kind, dict[str, Wording]] = {
    "heart": {
        NORMAL: Wording("clear S1 and S2 with silent intervals", "normal heart sounds",
                        "systole and diastole are silent", "Valve disease is unlikely."),
        "mitral regurgitation": Wording("a holosystolic murmur", "mitral regurgitation",
                                        "blood leaks back through the mitral valve throughout systole",
                                        "Tricuspid regurgitation or a ventricular septal defect is less likely."),
        "aortic stenosis": Wording("an ejection systolic murmur", "aortic stenosis",
                                   "flow through a narrow aortic valve rises and falls during ejection",
                                   "Pulmonary stenosis or hypertrophic cardiomyopathy is less likely."),
        "aortic regurgitation": Wording("an early diastolic murmur", "aortic regurgitation",
                                        "blood leaks back through the aortic valve right after S2",
                                        "Pulmonary regurgitation is less likely."),
        "mitral stenosis": Wording("an opening snap and a diastolic rumble", "mitral stenosis",
                                   "a stiff mitral valve snaps open and narrows the filling",
                                   "Tricuspid stenosis or an Austin Flint murmur is less likely."),
        "mitral valve prolapse": Wording("a mid-systolic click and a late systolic murmur", "mitral valve prolapse",
                                         "a leaflet bulges with a click and leaks in late systole",
                                         "Papillary muscle dysfunction is less likely."),
    },
    "lung": {
        NORMAL: Wording("vesicular breath sounds only", "normal lung sounds",
                        "no added sounds are heard", "Airway or lung disease is unlikely."),
        "asthma": Wording("wheezes", "asthma", "narrowed airways whistle in expiration",
                          "A foreign body or vocal cord dysfunction is less likely."),
        "chronic bronchitis": Wording("rhonchi", "chronic bronchitis", "secretions in large airways make them rattle",
                                      "Bronchiectasis is less likely."),
        "pulmonary fibrosis": Wording("fine crackles", "pulmonary fibrosis",
                                      "stiff airways pop open late in inspiration",
                                      "Heart failure is less likely."),
        "pneumonia": Wording("coarse crackles", "pneumonia", "air bubbles through secretions in both phases",
                             "Bronchiectasis or pulmonary edema is less likely."),
    },
}  # fmt: skip
"""By kind and condition."""

_SITE_MEANING = {
    "aortic area": "where the aortic valve is heard best",
    "pulmonic area": "where the pulmonary valve is heard best",
    "tricuspid area": "where the tricuspid valve is heard best",
    "mitral area": "where the mitral valve is heard best",
    "anterior left chest": "over the left upper lobe",
    "anterior right chest": "over the right upper lobe",
    "lateral left chest": "over the lingula",
    "lateral right chest": "over the right middle lobe",
    "posterior left chest": "over the left lower lobe",
    "posterior right chest": "over the right lower lobe",
}

INSTRUCTIONS: dict[Task, tuple[str, ...]] = {
    "Classification": (
        "Is this {kind} sound normal or abnormal?",
        "Classify this {kind} sound as normal or abnormal.",
    ),
    "Identification": (
        "What is the main finding in this {kind} sound?",
        "What is the primary sound event in this {kind} recording?",
        "Identify the finding in this {kind} sound.",
    ),
    "Report": (
        "Write a short report of this {kind} sound.",
        "Generate a brief summary of the {kind} sound findings.",
    ),
    "Reasoning": (
        "Give the most likely diagnosis for this {kind} sound and explain it.",
        "Provide a diagnosis from this {kind} sound and explain your reasoning.",
    ),
    "Differential Diagnosis": (
        "Which diagnoses should be considered for this {kind} sound?",
        "Discuss potential causes of what is heard in this {kind} sound.",
    ),
    "Location": (
        "What is the significance of the location '{site}' in this case?",
        "What does this {kind} recording from the {site} show?",
    ),
    "Comparison": (
        "Compare audio 2 with audio 1. What is the major difference?",
        "Compare audio 2 to audio 1. What is the major diagnostic difference?",
    ),
}
"""Phrasings of each task; one is drawn at random, whatever the answer."""


@dataclass(frozen=True)
class Case:
    """The true labels of one recording: its kind, condition (``NORMAL`` or a diagnosis), and site."""

    kind: Kind
    condition: str
    site: str

    @classmethod
    def of(cls, kind: str, condition: str, finding: str, site: str | None) -> Case | None:
        """The case of a recording with these labels, where this module has the words for all of them."""
        if kind not in ("heart", "lung") or (site and site not in _SITE_MEANING):
            return None
        words = WORDINGS[kind].get(condition)  # type: ignore[index]
        return cls(kind, condition, site or "") if words and words.finding == finding else None  # type: ignore[arg-type]

    @property
    def wording(self) -> Wording:
        """The condition in words."""
        return WORDINGS[self.kind][self.condition]

    @property
    def status(self) -> str:
        """``normal`` or ``abnormal``."""
        return NORMAL if self.condition == NORMAL else "abnormal"


def instruction(task: Task, case: Case, rng: np.random.Generator) -> str:
    """One phrasing of ``task`` about ``case``; it tells nothing about the condition."""
    return phrasing(task, case.kind, case.site, rng)


def phrasing(task: Task, kind: str, site: str, rng: np.random.Generator) -> str:
    """One phrasing of ``task`` about a sound of ``kind`` (heart, lung, ...) recorded at ``site``."""
    phrasings = INSTRUCTIONS[task]
    return phrasings[int(rng.integers(len(phrasings)))].format(kind=kind, site=site)


def response(task: Task, case: Case) -> str:
    """The answer to ``task`` (any but Comparison) for ``case``.

    Raises:
        KeyError: ``task`` concerns several recordings.
    """
    words = case.wording
    conclusion = "" if case.status == NORMAL else f", consistent with {words.diagnosis}"
    if task == "Location":
        return f"At the {case.site}, {_SITE_MEANING[case.site]}: {words.finding}, consistent with {words.diagnosis}."
    answers: dict[Task, str] = {
        "Classification": f"The {case.kind} sound is {case.status}.",
        "Identification": f"The main finding is {words.finding}.",
        "Report": f"The {case.kind} sound is {case.status}, with {words.finding}{conclusion}.",
        "Reasoning": f"{_capital(words.diagnosis)}. The recording shows {words.finding}, because {words.reason}.",
        "Differential Diagnosis": f"{_capital(words.diagnosis)}: most likely. {words.alternatives}",
    }
    return answers[task]


def comparison(first: Case, second: Case) -> str:
    """The answer to Comparison for two recordings of one kind."""
    one, two = first.wording.diagnosis, second.wording.diagnosis
    if one == two:
        return f"There is no major difference: both recordings show {one}."
    return f"Audio 1 shows {one}, while audio 2 shows {two}."


CAUSES: dict[str, tuple[str, ...]] = {
    "wheeze": ("asthma", "COPD", "bronchiolitis"),
    "rhonchus": ("chronic bronchitis", "COPD", "bronchiectasis"),
    "stridor": ("croup", "upper airway obstruction"),
    "crackle": ("pneumonia", "pulmonary fibrosis", "heart failure"),
    "pleural rub": ("pleurisy", "pneumonia"),
    "bronchial breathing": ("pneumonia", "pulmonary fibrosis"),
    "reduced breath sounds": ("pleural effusion", "COPD"),
    "adventitious sound": ("asthma", "COPD", "pneumonia"),
    "diastolic murmur": ("aortic regurgitation", "mitral stenosis", "pulmonary regurgitation"),
    "systolic murmur": ("mitral regurgitation", "aortic stenosis", "ventricular septal defect"),
    "continuous murmur": ("patent ductus arteriosus", "aortic regurgitation"),
    "murmur": ("mitral regurgitation", "aortic stenosis", "septal defect"),
    "click": ("mitral valve prolapse", "aortic stenosis"),
    "cough": ("upper respiratory tract infection", "bronchitis", "asthma"),
}
"""By the ontology's findings, the more specific ones first: diseases in which they are heard (textbook knowledge)."""
_CAUSES_OF_KIND: dict[str, tuple[str, ...]] = {
    "heart": ("mitral regurgitation", "aortic stenosis", "septal defect"),
    "lung": ("asthma", "COPD", "pneumonia"),
    "cough": ("upper respiratory tract infection", "bronchitis", "asthma"),
    "breath": ("asthma", "COPD", "bronchitis"),
}
_NO_DISEASE = {"heart": "valve disease or a septal defect", "lung": "airway disease or pneumonia"}


def causes(kind: str, finding: str) -> tuple[str, ...]:
    """What ``finding`` is heard in; where it is none of :data:`CAUSES`, what is common for the ``kind`` of sound."""
    known = ontology()
    named = known.closure(mention.concept for mention in known.mentions(finding))
    return next((diseases for name, diseases in CAUSES.items() if name in named), _CAUSES_OF_KIND[kind])


def differential(kind: str, status: str | None, finding: str | None, diagnosis: str | None) -> str:
    """The answer to Differential Diagnosis from labels alone: their diagnosis, if they have one, before others."""
    if status == NORMAL and (diagnosis is None or diagnosis.startswith(("no ", NORMAL, "healthy"))):
        return f"Normal {kind} sounds: most likely. {_capital(_NO_DISEASE.get(kind, _NO_DISEASE['lung']))} is unlikely."
    if diagnosis is None:
        *others, last = causes(kind, finding or "")
        return f"The cause of {finding} may be {', '.join(others)} or {last}."
    known = ontology()
    theirs = known.closure(mention.concept for mention in known.mentions(diagnosis))
    others = [
        cause
        for cause in causes(kind, finding or "")
        if not theirs & {mention.concept for mention in known.mentions(cause)}
    ]
    return f"{_capital(diagnosis)}: most likely. {_capital(' or '.join(others[:2]))} is less likely."


def contrast(label: str, first: str, second: str) -> str:
    """The answer to Comparison from one label (``status`` or a noun phrase) of each recording."""
    if first == second:
        what = f"are {first}" if label == "status" else f"show {first}"
        return f"There is no major difference: both recordings {what}."
    verb = "is" if label == "status" else "shows"
    return f"Audio 1 {verb} {first}, while audio 2 {verb} {second}."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
