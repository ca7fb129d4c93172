"""What a text asserts: mentions with their negation, hedging and, in comparisons, their recording.

A rule-based reader in the manner of NegEx (Chapman et al., J Biomed Inform 34:301-310, 2001): triggers with a scope
inside a clause. It is meant for the short answers of auscultation reports, in English.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from stetholm.corpus.ontology import Mention, normalise, ontology

State = Literal["asserted", "negated", "possible", "alternative"]
"""possible: only may be so ("could be asthma"); alternative: named as the less likely one."""


BOTH = -1
"""Number of the recording where a text speaks of both."""


class Assertion(NamedTuple):
    """A concept, what the text says of it, and the number of the recording (0: none named; ``BOTH``)."""

    concept: str
    state: State
    recording: int


_VERB = r"(?:is|are|was|were|shows?|has|have|contains?|remains?|suggests?|indicates?|can|could|may)"
_SENTENCE = re.compile(r"[.!?;:\n]+(?=\s|$)")
_CONTRAST = re.compile(
    r"\b(?:however|although|though|while|whilst|whereas|yet|except(?: for)?|apart from|other than"
    r"|but(?!\s+(?:is|are|was|were|less|not|remains?|seems?)\b))\b"
)
_COMMA = re.compile(r",\s*(?:and\s+|or\s+)?")
_FAVOURED = re.compile(r"\b(?:(?:most|more) (?:likely|probable)|best explained|favou?red|consistent with)\b")

_NOT_A_NEGATION = re.compile(r"\b(?:not only|no change|no doubt|not (?:be )?(?:excluded?|ruled? out))\b")
_BEFORE = re.compile(
    r"\b(?:no|not|without|neither|nor|never|cannot|absence of|free (?:of|from)|lack(?:s|ing)?(?: of)?"
    r"|negative for|devoid of|none of|(?:rules?|ruling) out|excludes?|excluding"
    r"|(?:argues?|speaks?) against|doesn't|isn't|aren't)\b"
)
_BEFORE_COMMA = re.compile(r"\b(?:rather than|instead of|unlike|than|as opposed to)\b")
_AFTER = re.compile(
    r"\b(?:absent|unlikely|missing|lacking|ruled out|excluded|isn't|aren't|wasn't|weren't"
    r"|not (?:heard|present|detected|audible|seen|suggested|found|identified|evident|noted|appreciated|likely))\b"
)
_ENDS_SCOPE = re.compile(
    r",\s*(?:with|consistent|suggest\w*|indicat\w*|which|there|so|this|it|the|audio|recording|only)\b"
)
_ALTERNATIVE = re.compile(
    r"\b(?:(?:could|may|might|can|would|should) also|also (?:be )?consider\w*|less (?:likely|probable)|alternativ\w+"
    r"|cannot be (?:excluded|ruled out)|not (?:be )?(?:excluded|ruled out)|remote possibility|mimics?)\b"
)
_POSSIBLE = re.compile(r"\b(?:could|may|might|possib\w+|differential|consider\w*|versus)\b")

_NUMBER = {"1": 1, "2": 2, "3": 3, "4": 4, "one": 1, "two": 2, "three": 3, "four": 4,
           "first": 1, "second": 2, "third": 3, "fourth": 4}  # fmt: skip
_NOUN = r"(?:audio|recording|clip|sample|track|sound)"
_RECORDING = re.compile(
    rf"\b{_NOUN}(?:\s+(?:number|no\.?|#))?\s*(?P<after>[1-4]|one|two|three|four)\b"
    rf"|\b(?P<before>first|second|third|fourth)\s+(?:audio|recording|clip|sample|track)\b"
    r"|\bboth\s+(?:audio|recording|clip|sample|track|show|have|contain|are\b)"
)


@dataclass(frozen=True)
class _Clause:
    """A stretch of the normalised text, ``text[start:end]``, with the mentions in it."""

    text: str
    start: int
    end: int
    mentions: tuple[Mention, ...]

    def hits(self, pattern: re.Pattern[str]) -> list[tuple[int, int]]:
        """Where a trigger stands, outside the mentions' own words."""
        spans = [hit.span() for hit in pattern.finditer(self.text, self.start, self.end)]
        return [s for s in spans if not any(m.start <= s[0] and s[1] <= m.end for m in self.mentions)]


def _parts(pattern: re.Pattern[str], text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut ``text[start:end]`` at every match of ``pattern``."""
    cuts = [hit.span() for hit in pattern.finditer(text, start, end)]
    edges = [start, *(edge for cut in cuts for edge in cut), end]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if text[a:b].strip()]


def _split_at_commas(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut at the commas that part two statements: a verb on both sides, or a favoured and a less likely cause."""
    for comma in _COMMA.finditer(text, start, end):
        left, right = text[start : comma.start()], text[comma.end() : end]
        verbs = all(re.search(rf"\b{_VERB}\b", side) for side in (left, right))
        relative = re.match(r"(?:which|that)\b", right)
        weighed = any(_FAVOURED.search(a) and _ALTERNATIVE.search(b) for a, b in ((left, right), (right, left)))
        if (verbs and not relative) or weighed:
            return [(start, comma.start()), *_split_at_commas(text, comma.end(), end)]
    return [(start, end)]


def _sentences(text: str, mentions: list[Mention]) -> list[list[_Clause]]:
    """Sentences as lists of clauses; questions state nothing and are left out."""
    result = []
    for start, end in _parts(_SENTENCE, text, 0, len(text)):
        if text[end : end + 1] == "?":
            continue
        spans = [s for part in _parts(_CONTRAST, text, start, end) for s in _split_at_commas(text, *part)]
        clauses = [_Clause(text, a, b, tuple(m for m in mentions if a <= m.start < b)) for a, b in spans]
        result.append(clauses)
    return result


def _negated(clause: _Clause, mention: Mention) -> bool:
    """Whether a negation of the clause reaches the mention."""
    ignored = clause.hits(_NOT_A_NEGATION)
    stops = [a for a, _ in clause.hits(_ENDS_SCOPE)]
    commas = [hit.start() for hit in re.finditer(",", clause.text[clause.start : clause.end])]
    for pattern, ends in ((_BEFORE, stops), (_BEFORE_COMMA, [clause.start + c for c in commas])):
        for a, b in clause.hits(pattern):
            reach = min((stop for stop in ends if stop >= b), default=clause.end)
            if b <= mention.start < reach and not any(i <= a < j for i, j in ignored):
                return True
    return any(mention.end <= a and not any(i <= a < j for i, j in ignored) for a, _ in clause.hits(_AFTER))


def _state(clause: _Clause, mention: Mention) -> State:
    """What the clause says of the mention."""
    if clause.hits(_ALTERNATIVE):
        return "alternative"
    if _negated(clause, mention):
        return "negated"
    return "possible" if clause.hits(_POSSIBLE) and not clause.hits(_FAVOURED) else "asserted"


def _tail(clauses: list[_Clause], index: int) -> State | None:
    """State that a following clause without a subject of its own ("..., but are less likely") gives to this one."""
    following = clauses[index + 1] if index + 1 < len(clauses) else None
    if following is None or following.mentions:
        return None
    if following.hits(_ALTERNATIVE):
        return "alternative"
    return "negated" if following.hits(_AFTER) else None


def _recording(clause: _Clause, mention: Mention, earlier: int) -> int:
    """Number of the recording the mention belongs to: named before it in the clause, after it, or earlier."""
    named = [(hit.start(), _number(hit)) for hit in _RECORDING.finditer(clause.text, clause.start, clause.end)]
    before = [number for at, number in named if at < mention.start]
    after = [number for at, number in named if at >= mention.start]
    return before[-1] if before else after[0] if after else earlier


def _number(hit: re.Match[str]) -> int:
    return _NUMBER.get(hit["after"] or hit["before"] or "", BOTH)


def assertions(text: str) -> list[Assertion]:
    """All concepts that ``text`` mentions, in order, with what it says of them."""
    mentions, lowered, recording = ontology().mentions(text), normalise(text), 0
    found: list[Assertion] = []
    for clauses in _sentences(lowered, mentions):
        for index, clause in enumerate(clauses):
            tail = _tail(clauses, index)
            for mention in clause.mentions:
                state = tail or _state(clause, mention)
                found.append(Assertion(mention.concept, state, _recording(clause, mention, recording)))
            named = [_number(hit) for hit in _RECORDING.finditer(lowered, clause.start, clause.end)]
            recording = named[-1] if named else recording
    return found
