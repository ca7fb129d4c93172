"""What a writer tells of the patient or measures, though nobody told it: age, sex, habits, rates, grades, numbers."""

from __future__ import annotations

import re

from stetholm.corpus.ontology import normalise

_PATIENT = (
    r"man|woman|men|women|male|female|boy|girl|gentleman|lady|he|she|his|her|him|years? old|months? old|aged?"
    r"|elderly|newborn|neonat\w*|infant|toddler|child(?:ren)?|adolescent|teenager|adult|pregnan\w+"
    r"|smok\w+|tobacco|history of|athlet\w+"
)
_MEASURED = (
    r"grade (?:[ivx]+|one|two|three|four|five|six)|(?:i|ii|iii|iv|v|vi) ?/ ?vi|out of six"
    r"|beats (?:per|a) minute|breaths (?:per|a) minute|bpm"
)
_SPREADS = r"radiat\w+"
_INVENTED = re.compile(rf"\b(?:{_PATIENT}|{_MEASURED}|{_SPREADS})\b")
_NUMBER = re.compile(r"(?<![a-z0-9])\d[\d./]*")
_NAMED = re.compile(
    r"\b(?:audio|recording|clip|sample|sound|track)s?(?: (?:number|no\.?|#))? ?\d"
    r"(?: ?(?:and|&|or|,|to|with|versus) ?\d)*\b"
    r"|\bcovid 19\b|(?:^|(?<=[.;:,] ))[1-9][.)](?= )"
)
"""Numbers that measure nothing: of a recording, in a name, of a list's items."""


def invention(text: str, facts: str) -> str | None:
    """What ``text`` tells that the facts do not hold, in its own words; None if there is nothing of the kind.

    Args:
        text: a question or an answer.
        facts: what the writer was told.
    """
    known, told = normalise(facts), _NAMED.sub(" ", normalise(text))
    hits = [*_INVENTED.finditer(told), *_NUMBER.finditer(told)]
    words = (hit[0].rstrip("./") for hit in hits)
    return next((word for word in words if not re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", known)), None)
