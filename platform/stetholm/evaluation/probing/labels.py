"""What a corpus says of each of its recordings, and the task that follows from it.

The catalogue's labels count where there are any (``status``, ``finding``, ``diagnosis``: what the publisher labelled);
else what the corpus's answers about this one recording assert (see :func:`stetholm.corpus.labels.findings`), of the
tasks that say what is heard or concluded. Differential diagnoses name what it may be, so they do not count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stetholm.corpus.catalog import by_recording, read_catalog
from stetholm.corpus.labels import findings
from stetholm.corpus.manifest import Manifest
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Kind
from stetholm.errors import UserError
from stetholm.evaluation.examples import TEXT_COLUMNS, Example, read_rows
from stetholm.evaluation.probing.classes import HEALTHY, ClassFile, ProbeTask, diagnosis, diagnosis_task, frequent
from stetholm.model.prompts import HEART, domain_sentence
from stetholm.settings import ProbeSettings
from stetholm.storage import Storage

TELLING = ("Classification", "Identification", "Report", "Reasoning")
"""Tasks whose answers say what a recording is."""

_NO_DISEASE = re.compile(r"no\b.*\bdisease\b", re.IGNORECASE)
_RISK = re.compile(r"at risk\b", re.IGNORECASE)
_COUGH, _BREATH = re.compile(r"cough", re.IGNORECASE), re.compile(r"breath|exhal", re.IGNORECASE)


@dataclass(frozen=True)
class Known:
    """A recording, who it is of, and what is known of it.

    Attributes:
        recording_id: as in the corpus.
        dataset: its dataset.
        kind: what sounds.
        patient: dataset and patient.
        split: where it stands.
        seconds: its length.
        concepts: of the ontology, closed under "is a kind of" and "implies".
    """

    recording_id: str
    dataset: str
    kind: Kind
    patient: str
    split: str
    seconds: float
    concepts: frozenset[str]


@dataclass(frozen=True, eq=False)
class Labelled:
    """A task, and its recordings that have a class.

    Attributes:
        task: what is asked.
        recordings: (n,) sorted by split and id.
        y: (n,) each one's class.
        dropped: recordings of the right kind that are of no class, or of several.
    """

    task: ProbeTask
    recordings: tuple[Known, ...]
    y: NDArray[np.int64]
    dropped: int

    def of(self, splits: Iterable[str]) -> Labelled:
        """The recordings of some splits."""
        wanted = set(splits)
        places = [number for number, one in enumerate(self.recordings) if one.split in wanted]
        return Labelled(self.task, tuple(self.recordings[n] for n in places), self.y[places], self.dropped)

    @property
    def patients(self) -> list[str]:
        """(n,) of each recording."""
        return [one.patient for one in self.recordings]

    def patients_by_class(self) -> dict[str, int]:
        """How many patients have a recording of each class."""
        pairs = {(int(label), patient) for label, patient in zip(self.y, self.patients, strict=True)}
        return {each.name: sum(label == n for label, _ in pairs) for n, each in enumerate(self.task.classes)}


@dataclass(frozen=True)
class Corpus:
    """Recordings by id, and the examples of each split that carry their sound."""

    recordings: Mapping[str, Known]
    examples: Mapping[str, Sequence[Example]]


def read_corpus(storage: Storage, uri: str, splits: Sequence[str]) -> Corpus:
    """All recordings of some splits, with what the corpus says of them.

    Raises:
        CorpusError: there is no corpus, or nothing in one of the splits.
    """
    manifest = Manifest.load(storage, uri)
    catalogue = by_recording(read_catalog(storage, uri, manifest))
    recordings: dict[str, Known] = {}
    examples: dict[str, list[Example]] = {}
    for split in splits:
        rows = list(read_rows(storage, uri, split, (*TEXT_COLUMNS, "seconds")))
        examples[split] = [_example(row) for row in rows]
        texts: dict[str, list[str]] = defaultdict(list)
        alone = [row for row in rows if len(row["recording_ids"]) == 1]
        for row in alone:
            texts[row["recording_ids"][0]] += [row["response"]] if row["task"] in TELLING else []
        for row in alone:
            name = row["recording_ids"][0]
            if name not in recordings:
                recordings[name] = _known(row, split, catalogue.get(name, {}), texts[name])
    return Corpus(recordings, examples)


def _example(row: Mapping[str, Any]) -> Example:
    return Example(**{**{name: row[name] for name in TEXT_COLUMNS}, "recording_ids": tuple(row["recording_ids"])})


def _known(row: Mapping[str, Any], split: str, entry: Mapping[str, Any], texts: Sequence[str]) -> Known:
    name, dataset = row["recording_ids"][0], entry.get("dataset") or row["dataset"]
    return Known(
        name,
        dataset,
        entry.get("kind") or kind_of(dataset, entry.get("filename") or ""),
        f"{dataset}/{entry.get('patient') or row['patient']}",
        split,
        float(entry.get("seconds") or row["seconds"][0]),
        concepts(entry.get("labels") or {}, texts),
    )


def concepts(labels: Mapping[str, str], texts: Iterable[str]) -> frozenset[str]:
    """What labels say or, where there are none of the three that mean the same everywhere, texts."""
    known = [labels[name] for name in (STATUS, FINDING, DIAGNOSIS) if labels.get(name)]
    found: set[str] = set()
    for text in known or texts:
        if known and _NO_DISEASE.match(text):
            found.add(HEALTHY)
        elif not (known and _RISK.match(text)):  # at risk of a disease is neither with nor without it
            found |= findings(text)
    return frozenset(found)


def kind_of(dataset: str, filename: str) -> Kind:
    """What sounds in a recording whose publisher is not read by a reader of ours, by the names alone."""
    if domain_sentence(dataset, "") == HEART:
        return "heart"
    if _COUGH.search(f"{dataset} {filename}"):
        return "cough"
    return "breath" if _BREATH.search(filename) else "lung"


def choose_tasks(corpus: Corpus, classes: ClassFile, chosen: ProbeSettings, seed: int) -> list[Labelled]:
    """The tasks that are wanted, with their recordings.

    Raises:
        UserError: a task is unknown, or has not the recordings that it needs; no task has.
    """
    kinds = sorted({one.kind for one in corpus.recordings.values()})
    possible = [*classes.named(), *(_diagnoses(corpus, classes, kind, chosen.folds) for kind in kinds)]
    by_name = {task.name: task for task in possible}
    unknown = [name for name in chosen.tasks or () if name not in by_name]
    if unknown:
        raise UserError(f"probe.tasks: there is no task {unknown[0]!r}; there are: {', '.join(by_name)}")
    found, reasons = [], []
    for name in chosen.tasks or list(by_name):
        labelled = label(by_name[name], corpus, chosen.max_recordings, seed)
        reason = shortage(labelled, chosen)
        if reason is None:
            found.append(labelled)
        elif chosen.tasks:
            raise UserError(f"probe.tasks: {name}: {reason}")
        elif len(labelled.recordings):
            reasons.append(f"{name}: {reason}")
    if not found:
        raise UserError(f"the corpus has nothing to probe: {'; '.join(reasons) or 'no recording is of a class'}")
    for reason in reasons:
        print(f"probe: left out: {reason}")
    return found


def _diagnoses(corpus: Corpus, classes: ClassFile, kind: Kind, least: int) -> ProbeTask:
    """The task of one kind's diagnoses; those that fewer than ``least`` patients have are no class."""
    pairs = [(diagnosis(one.concepts), one.patient) for one in corpus.recordings.values() if one.kind == kind]
    return classes.of_diagnoses(kind, frequent([(name, who) for name, who in pairs if name], least))


def label(task: ProbeTask, corpus: Corpus, most: int | None, seed: int) -> Labelled:
    """The recordings of a task's kinds that are of one of its classes; of each split ``most`` at most."""
    of_kind = [one for one in corpus.recordings.values() if one.kind in task.kinds]
    labelled = [(one, number) for one in of_kind if (number := task.label(one.concepts)) is not None]
    kept: list[tuple[Known, int]] = []
    for split in corpus.examples:
        there = sorted((pair for pair in labelled if pair[0].split == split), key=lambda pair: pair[0].recording_id)
        places = np.sort(np.random.default_rng(seed).permutation(len(there))[:most])
        kept += [there[place] for place in places]
    numbers = np.array([number for _, number in kept], np.int64)
    return Labelled(task, tuple(one for one, _ in kept), numbers, len(of_kind) - len(labelled))


def shortage(labelled: Labelled, chosen: ProbeSettings) -> str | None:
    """Why a task cannot be probed; None if it can."""
    fit, test = labelled.of(chosen.fit), labelled.of([chosen.test])
    for where, part in (("+".join(chosen.fit), fit), (chosen.test, test)):
        there = {part.task.classes[n].name for n in set(part.y.tolist())}
        if len(there) < 2:
            only = f"only {next(iter(there))!r}" if there else "none"
            return f"the split {where} needs recordings of two classes, but has {only}"
    short = {name: count for name, count in labelled.patients_by_class().items() if 0 < count < chosen.folds}
    if chosen.cross_validate and short:
        name, count = next(iter(short.items()))
        return (
            f"class {name!r} has {count} patient{'s' * (count > 1)}, fewer than probe.folds={chosen.folds}: "
            "set fewer folds, or probe.cross_validate=false"
        )
    return None


__all__ = ["Corpus", "Known", "Labelled", "choose_tasks", "concepts", "diagnosis_task", "label", "read_corpus"]
