"""The paper's table, to be printed beside ours: theirs, with another backbone and another judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class Published:
    """What the paper reports, in per cent."""

    source: str
    models: tuple[str, ...]
    tasks: dict[str, tuple[tuple[float, float], ...]]
    """By task, and ``Overall`` and ``Out of domain``: BERTScore F1 and clinical accuracy of each model."""
    rouge1: float
    """Overall, of StethoLM."""

    def cells(self, task: str) -> list[str]:
        """``71.8 / 47.8`` for each model; dashes where the paper has no such row."""
        found: Sequence[tuple[float, float]] = self.tasks.get(task, ())
        return [f"{f1} / {accuracy}" for f1, accuracy in found] or ["-"] * len(self.models)


@cache
def published() -> Published:
    """The table that is shipped with the package."""
    raw = yaml.safe_load(files(__package__).joinpath("published.yaml").read_text("utf-8"))
    tasks = {name: tuple((float(a), float(b)) for a, b in pairs) for name, pairs in raw["tasks"].items()}
    return Published(raw["source"], tuple(raw["models"]), tasks, float(raw["rouge1"]))
