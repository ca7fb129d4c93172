"""The ontology of auscultation: concepts, what they imply, and where a text mentions them.

The concepts stand in ``ontology.yaml`` beside this module, so that a clinician can read and extend them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import yaml

Kind = Literal["status", "component", "finding", "diagnosis", "site"]

_JOINING = "and|or|nor|with|without|no|not|but|after|before|then|followed|click|snap|is|are"
_FILLER = rf"(?:\s+(?!(?:{_JOINING})\b)[a-z0-9']+){{0,3}}?\s+"


@dataclass(frozen=True)
class Concept:
    """One finding, site, diagnosis or status, and the words for it."""

    name: str
    kind: Kind
    parents: tuple[str, ...] = ()
    implies: tuple[str, ...] = ()
    patterns: tuple[re.Pattern[str], ...] = field(default=(), repr=False)
    abbreviations: tuple[re.Pattern[str], ...] = field(default=(), repr=False)
    """Matched in capitals only: "AS" is aortic stenosis, "as" is not."""


class Mention(NamedTuple):
    """A concept's words in a text: ``text[start:end]``."""

    start: int
    end: int
    concept: str


def normalise(text: str) -> str:
    """Lower case with hyphens, dashes and underscores as spaces; every character keeps its place."""
    return re.sub(r"[-\u2010-\u2015_]", " ", text.lower()) if len(text.lower()) == len(text) else _ascii(text)


def _ascii(text: str) -> str:
    # A few letters (e.g. the dotted capital I) change length in lower case; they are in no term.
    return normalise("".join(char if char.isascii() else " " for char in text))


def _pattern(term: str) -> re.Pattern[str]:
    """A term's regular expression: whole words, an optional plural, ``*`` as filler words."""
    parts = [r"\s+".join(re.escape(word) for word in part.split()) for part in term.split("*")]
    return re.compile(rf"\b{_FILLER.join(parts)}(?:e?s)?\b")


class Ontology:
    """Concepts by name, with their closure and a matcher."""

    def __init__(self, concepts: Iterable[Concept]) -> None:
        self.concepts = {concept.name: concept for concept in concepts}
        for concept in self.concepts.values():
            unknown = set(concept.parents + concept.implies) - self.concepts.keys()
            if unknown:
                raise ValueError(f"ontology: {concept.name!r} refers to unknown concepts {sorted(unknown)}")

    def kind(self, name: str) -> Kind:
        """What sort of concept ``name`` is."""
        return self.concepts[name].kind

    def ancestors(self, name: str) -> frozenset[str]:
        """``name`` itself and everything it is a kind of."""
        found = {name}
        for parent in self.concepts[name].parents:
            found |= self.ancestors(parent)
        return frozenset(found)

    def closure(self, names: Iterable[str]) -> frozenset[str]:
        """``names`` with everything they are a kind of or imply."""
        found: set[str] = set()
        for name in names:
            for ancestor in self.ancestors(name):
                found |= {ancestor, *self.concepts[ancestor].implies}
        return frozenset(found)

    def related(self, one: str, other: str) -> bool:
        """Whether one of two concepts is a kind of the other (or they are the same)."""
        return one in self.ancestors(other) or other in self.ancestors(one)

    def leaves(self, names: Iterable[str], kind: Kind) -> frozenset[str]:
        """The most specific concepts of one kind among ``names``."""
        of_kind = {name for name in names if self.kind(name) == kind}
        general = {a for name in of_kind for a in self.ancestors(name) if a != name}
        return frozenset(of_kind - general)

    def mentions(self, text: str) -> list[Mention]:
        """All mentions in ``text`` in order; where they overlap, the longest stands."""
        lowered = normalise(text)
        found = [
            Mention(hit.start(), hit.end(), concept.name)
            for concept in self.concepts.values()
            for patterns, where in ((concept.patterns, lowered), (concept.abbreviations, text))
            for pattern in patterns
            for hit in pattern.finditer(where)
        ]
        return _longest(found)


def _longest(found: list[Mention]) -> list[Mention]:
    """Non-overlapping mentions, longer ones first to choose."""
    kept: list[Mention] = []
    for mention in sorted(found, key=lambda m: (m.start - m.end, m.start)):
        if all(mention.end <= other.start or mention.start >= other.end for other in kept):
            kept.append(mention)
    return sorted(kept)


def _concept(name: str, entry: dict[str, object]) -> Concept:
    """One entry of the file."""

    def names(key: str) -> tuple[str, ...]:
        value = entry.get(key, [])
        return tuple(str(item) for item in value) if isinstance(value, list) else ()

    kind: Kind = entry["kind"]  # type: ignore[assignment]
    words = tuple(_pattern(term) for term in names("terms") if not term.isupper())
    capitals = tuple(re.compile(rf"\b{re.escape(term)}\b") for term in names("terms") if term.isupper())
    return Concept(name, kind, names("is"), names("implies"), words, capitals)


@cache
def ontology() -> Ontology:
    """The ontology shipped with the package."""
    entries = yaml.safe_load(files(__package__).joinpath("ontology.yaml").read_text("utf-8"))
    return Ontology(_concept(name, entry) for name, entry in entries.items())
