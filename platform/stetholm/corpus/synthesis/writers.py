"""Who answers: the interface, and the deterministic writer behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stetholm.corpus.synthesis import template_writer
from stetholm.corpus.synthesis.plan import Planned
from stetholm.corpus.synthesis.prompts import Message
from stetholm.corpus.synthesis.store import Answer

Keep = Callable[[Sequence[Answer]], None]
"""Stores answers; when it returns they are safe."""


@dataclass(frozen=True)
class Ask:
    """One question to a writer."""

    key: str
    planned: Planned
    messages: tuple[Message, ...]


class Writer(Protocol):
    """Writes answers."""

    @property
    def name(self) -> str:
        """The ``model`` of its pairs."""
        ...

    @property
    def free(self) -> bool:
        """Whether its answers cost nothing, so that they need not be kept."""
        ...

    def write(self, asks: Sequence[Ask], keep: Keep) -> dict[str, str]:
        """Answer ``asks``, giving each answer to ``keep`` before anything else is asked in its place.

        Returns:
            Why there is no answer, by the keys of those that got none.

        Raises:
            UserError: the writer cannot be used.
        """
        ...


@dataclass(frozen=True)
class TemplateWriter:
    """See :mod:`stetholm.corpus.synthesis.template_writer`."""

    seed: int
    name: str = template_writer.NAME
    free: bool = True

    def write(self, asks: Sequence[Ask], keep: Keep) -> dict[str, str]:
        """See :meth:`Writer.write`; every question is answered."""
        keep([Answer(ask.key, template_writer.write(ask.planned, self.seed)) for ask in asks])
        return {}
