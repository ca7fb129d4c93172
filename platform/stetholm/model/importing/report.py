"""The account of an import: what became of every key of the file and of every weight of the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stetholm.errors import UserError

_SHOWN = 3

PROBLEMS = {
    "unknown": "unknown",
    "missing": "missing",
    "misshapen": "of another shape",
    "contradictory": "contradictory",
    "not_finite": "not finite",
}
"""What keeps an import from being whole: the report's field, and its name in messages."""


@dataclass(frozen=True)
class ImportReport:
    """What was imported, by the file's keys, except where it says by our names.

    Attributes:
        layout: opera or stetholm.
        imported: keys whose tensors are now in the model.
        repeated: keys that hold the same once more.
        unused: keys that are known and not needed.
        fresh: our names of weights that such a file does not bring: drawn anew.
        unknown: keys that stand for nothing in this model.
        missing: our names of weights that such a file should have.
        misshapen: keys with the shapes found and expected.
        contradictory: pairs of keys for one weight that differ.
        not_finite: keys of tensors with NaN or infinity.
    """

    layout: str
    imported: tuple[str, ...]
    repeated: tuple[str, ...]
    unused: tuple[str, ...]
    fresh: tuple[str, ...]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    contradictory: tuple[str, ...]
    not_finite: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return {name: len(keys) for name, keys in asdict(self).items() if name != "layout"}

    @property
    def whole(self) -> bool:
        """Whether every key of the file and every weight of the model found its place."""
        return not any(getattr(self, name) for name in PROBLEMS)

    def problems(self) -> str:
        """``2 keys unknown (a, b); 1 missing (c)``."""
        lists = [(title, getattr(self, name)) for name, title in PROBLEMS.items()]
        return "; ".join(f"{len(keys)} {title} ({_first(keys)})" for title, keys in lists if keys)

    def to_json(self) -> dict[str, Any]:
        """All lists, with their lengths."""
        return {"counts": self.counts, **asdict(self)}


class PartialImportError(UserError):
    """The file and the model do not fit each other wholly; ``report`` holds all keys."""

    def __init__(self, message: str, report: ImportReport) -> None:
        super().__init__(message)
        self.report = report


def _first(keys: tuple[str, ...]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
