"""The questions that are put to features and reports: tasks, their classes, and what describes each class.

They stand in ``classes.yaml`` beside this module; ``probe.classes`` names another file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stetholm.corpus.ontology import ontology
from stetholm.corpus.recording import Kind
from stetholm.errors import UserError
from stetholm.storage import Storage

NORMAL, HEALTHY = "normal", "healthy"


@dataclass(frozen=True)
class ProbeClass:
    """One class: the concepts that make a recording one of it, those that forbid it, and its description."""

    name: str
    labels: tuple[str, ...]
    description: str
    unless: tuple[str, ...] = ()

    def holds(self, concepts: frozenset[str]) -> bool:
        """Whether a recording with these concepts (closed under "is a kind of") is of this class."""
        return bool(concepts.intersection(self.labels)) and not concepts.intersection(self.unless)


@dataclass(frozen=True)
class ProbeTask:
    """Which class a recording is of. Of two classes, the AUROC is the second one's."""

    name: str
    kinds: tuple[Kind, ...]
    classes: tuple[ProbeClass, ...]
    by_diagnosis: bool = False
    """Whether its classes are the corpus's own diagnoses."""

    def label(self, concepts: frozenset[str]) -> int | None:
        """Number of the one class that a recording with these concepts is of; None for none or several."""
        if self.by_diagnosis:
            found = diagnosis(concepts)
            return next((number for number, each in enumerate(self.classes) if each.name == found), None)
        hits = [number for number, each in enumerate(self.classes) if each.holds(concepts)]
        return hits[0] if len(hits) == 1 else None


def diagnosis_task(kind: str) -> str:
    """Name of the task whose classes are the diagnoses of one kind of recording."""
    return f"{kind} diagnosis"


def diagnosis(concepts: frozenset[str]) -> str | None:
    """The only diagnosis among ``concepts``; without any, "normal" where that is said; else None."""
    found = ontology().leaves(concepts, "diagnosis")
    if not found:
        return NORMAL if NORMAL in concepts and "abnormal" not in concepts else None
    return next(iter(found)) if len(found) == 1 else None


class _Class(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    labels: list[str] = Field(min_length=1)
    unless: list[str] = []
    description: str = Field(min_length=1)

    @field_validator("labels", "unless")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in ontology().concepts:
                raise ValueError(f"{name!r} is no concept of the ontology")
        return names


class _Task(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: list[Kind] = Field(min_length=1)
    classes: dict[str, _Class] = Field(min_length=2)

    @field_validator("kind", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class ClassFile(BaseModel):
    """What ``classes.yaml`` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tasks: dict[str, _Task] = {}
    diagnoses: dict[str, str] = {}
    instructions: dict[Kind, str]

    def named(self) -> list[ProbeTask]:
        """The tasks of the file."""
        return [
            ProbeTask(
                name,
                tuple(task.kind),
                tuple(
                    ProbeClass(each, tuple(found.labels), found.description, tuple(found.unless))
                    for each, found in task.classes.items()
                ),
            )
            for name, task in self.tasks.items()
        ]

    def of_diagnoses(self, kind: Kind, names: Iterable[str]) -> ProbeTask:
        """The task whose classes are ``names``."""
        classes = [
            ProbeClass(name, (name,), self.diagnoses.get(name, f"The diagnosis is {name}.")) for name in sorted(names)
        ]
        return ProbeTask(diagnosis_task(kind), (kind,), tuple(classes), by_diagnosis=True)


def read_classes(source: str | None, storage: Storage) -> ClassFile:
    """The class file that is shipped, or the one at a path or ``s3://`` URI.

    Raises:
        UserError: it is not there, no YAML, or not of this form.
    """
    where = source or "classes.yaml"
    try:
        return ClassFile.model_validate(yaml.safe_load(_text(source, storage)))
    except yaml.YAMLError as error:
        raise UserError(f"probe.classes: {where} is no YAML: {' '.join(str(error).split())[:200]}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"probe.classes: {where}: {place}: {first['msg'].removeprefix('Value error, ')}") from error


def _text(source: str | None, storage: Storage) -> str:
    if source is None:
        return files(__package__).joinpath("classes.yaml").read_text("utf-8")
    if source.startswith("s3://"):
        return storage.read_text(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"probe.classes: there is no file {source}")
    return path.read_text("utf-8")


def frequent(names: Sequence[tuple[str, str]], least: int) -> list[str]:
    """Of pairs (class, patient), the classes that ``least`` patients have."""
    counts: Mapping[str, int] = Counter(name for name, _ in set(names))
    return [name for name, count in counts.items() if count >= least]
