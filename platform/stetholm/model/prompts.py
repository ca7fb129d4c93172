"""The words around an instruction: the published domain sentences."""

from __future__ import annotations

import re

HEART = "This is a recording of heart sound."
CARDIOPULMONARY = "This is a piece of cardiopulmonary audio."
RESPIRATORY = "This is a piece of respiratory audio."

HEART_DATASETS = frozenset({"heart-zch", "heart-circor", "cinc", "bmd-hs"})

_HEART_WORDS = re.compile(r"\b(heart|cardiac|murmurs?|systol\w*|diastol\w*|S[1-4])\b", re.IGNORECASE)
_LUNG_WORDS = re.compile(r"(lung|breath|respir|cough|wheez|crackl|pulmon)", re.IGNORECASE)


def domain_sentence(dataset: str | None, instruction: str) -> str:
    """The sentence before the instruction.

    By the data set's name as published; heart sets beyond the published ones are those named ``heart-...``. Where
    there is no name (an endpoint's request) by the instruction's words, and cardiopulmonary if they name both organs
    or neither (our choice).
    """
    name = (dataset or "").lower()
    if name in HEART_DATASETS or name.startswith("heart"):
        return HEART
    if name == "kauh":
        return CARDIOPULMONARY
    if name == "safety":
        return ""
    return RESPIRATORY if name else _by_words(instruction)


def _by_words(instruction: str) -> str:
    heart, lung = bool(_HEART_WORDS.search(instruction)), bool(_LUNG_WORDS.search(instruction))
    if heart == lung:
        return CARDIOPULMONARY
    return HEART if heart else RESPIRATORY
