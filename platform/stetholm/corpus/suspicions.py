"""What looks wrong in a corpus before anybody trains on it, a line each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stetholm.corpus.manifest import Manifest
from stetholm.corpus.recording import STATUS
from stetholm.corpus.schema import SPLITS
from stetholm.corpus.survey import Patient, Survey, patients_of

RARE = 0.1
"""A class below this share of a split is called rare."""
FREQUENT = 0.5
"""An answer above this share of a task is called too common."""
FEW = 10
"""Of fewer pairs or recordings, shares say nothing."""
SHORTEST = 1.0
"""Seconds; of a shorter recording the model hears mostly padding."""
_EXAMPLES = 3

_VARIABLE = (
    (re.compile(r"^recording .+?: "), "recording …: "),
    (re.compile(r"^(duplicate of) .+, line \d+"), r"\1 an earlier line"),
    (re.compile(r"'[^']*[/.\d][^']*'"), "'…'"),
    (re.compile(r"\d+(\.\d+)?"), "…"),
)
"""What differs between rejects of one kind: file names, quoted values, numbers."""


def group_rejects(reasons: Mapping[str, int]) -> dict[str, int]:
    """Rejects by kind of reason, the most frequent first."""
    kinds: Counter[str] = Counter()
    for reason, count in reasons.items():
        for pattern, instead in _VARIABLE:
            reason = pattern.sub(instead, reason)
        kinds[reason] += count
    return dict(kinds.most_common())


def suspicions(survey: Survey, figures: Mapping[str, Any]) -> list[str]:
    """Every doubt about the corpus, the gravest first.

    Args:
        survey: the corpus.
        figures: of :func:`stetholm.corpus.inspection.figures`.
    """
    return [
        *_patients_in_two_splits(survey),
        *_recordings_in_two_splits(survey),
        *_recordings_of_two_patients(survey),
        *_missing_splits(survey.manifest),
        *_missing_tasks(figures),
        *_rare_classes(figures),
        *_one_sided_datasets(figures),
        *_common_answers(figures),
        *_unlabelled(figures),
        *_short(survey),
        *_rejected(figures),
    ]


def _patients_in_two_splits(survey: Survey) -> Iterator[str]:
    """By (dataset, patient), from the pairs and the catalogue. A recording that is its own patient is not meant."""
    splits: dict[Patient, set[str]] = {}
    for split, rows in survey.pairs.items():
        for dataset, patient in {(row["dataset"], one) for row in rows for one in patients_of(row)}:
            splits.setdefault((dataset, patient), set()).add(split)
        for known in survey.members[split]:
            if known.patient is not None:
                splits.setdefault((known.dataset, known.patient), set()).add(split)
    for where, found in _torn(splits):
        patients = [f"{dataset} {patient}" for dataset, patient in found if patient not in survey.recordings]
        if patients:
            yield f"{_number(len(patients), 'patient')} in {where}, so scores flatter the model ({_some(patients)})"


def _recordings_in_two_splits(survey: Survey) -> Iterator[str]:
    splits: dict[str, set[str]] = {}
    for split, members in survey.members.items():
        for known in members:
            splits.setdefault(known.recording_id, set()).add(split)
    for where, found in _torn(splits):
        names = _some(survey.recordings[name].name for name in found)
        yield f"{_number(len(found), 'recording')} in {where} ({names})"


def _torn(splits: Mapping[Any, set[str]]) -> Iterator[tuple[str, list[Any]]]:
    """What stands in several splits, by these splits in words."""
    torn: dict[tuple[str, ...], list[Any]] = {}
    for what, found in splits.items():
        if len(found) > 1:
            torn.setdefault(tuple(sorted(found, key=SPLITS.index)), []).append(what)
    for where, which in sorted(torn.items()):
        yield f"{'both ' if len(where) == 2 else ''}{' and '.join(where)}", sorted(which)


def _recordings_of_two_patients(survey: Survey) -> Iterator[str]:
    """The very same bytes published under two names."""
    patients: dict[str, set[Patient]] = {}
    for row in survey.catalogue:
        patients.setdefault(row["recording_id"], set()).add((row["dataset"], row["patient"]))
    twice = [name for name, found in patients.items() if len(found) > 1]
    if twice:
        names = (" = ".join(" ".join(one) for one in sorted(patients[name])) for name in sorted(twice))
        yield f"{_number(len(twice), 'recording')} there under two names ({_some(names)})"


def _missing_splits(manifest: Manifest) -> Iterator[str]:
    for split, why in (("train", "nothing to train on"), ("test", "nothing to evaluate on")):
        if split not in manifest.splits or not manifest.splits[split].rows:
            yield f"no {split} split: {why}"


def _missing_tasks(figures: Mapping[str, Any]) -> Iterator[str]:
    for split in figures["splits"]:
        missing = [task for task, counts in figures["pairs_by"]["task"].items() if not counts[split]]
        if missing:
            yield f"split {split} has no pairs of a task that others have: {', '.join(missing)}"


def _rare_classes(figures: Mapping[str, Any]) -> Iterator[str]:
    values = figures["labels"].get(STATUS, {}).get("values", {})
    for split in figures["splits"]:
        total = sum(counts[split] for counts in values.values())
        for value, counts in values.items():
            if total and counts[split] < RARE * total:
                how = "rare" if counts[split] else "missing"
                yield f"status {value!r} is {how} in split {split}: {counts[split]} of {total} recordings"


def _one_sided_datasets(figures: Mapping[str, Any]) -> Iterator[str]:
    by_dataset = figures["status_by_dataset"]
    if len(by_dataset) < 2:
        return
    for dataset, counts in by_dataset.items():
        there = [status for status, count in counts.items() if count]
        if len(there) == 1 and len(counts) > 1 and counts[there[0]] >= FEW:
            yield f"all {counts[there[0]]} recordings of {dataset} are {there[0]}: the dataset gives the status away"


def _common_answers(figures: Mapping[str, Any]) -> Iterator[str]:
    for split, tasks in figures["answers"].items():
        for task, texts in tasks.items():
            if texts["pairs"] >= FEW and texts["commonest_share"] > FREQUENT:
                yield (
                    f"one answer makes {texts['commonest_share']:.0%} of {task} in split {split} "
                    f"({texts['pairs']} pairs): {shorten(texts['commonest'], 60)!r}"
                )


def _unlabelled(figures: Mapping[str, Any]) -> Iterator[str]:
    count = sum(figures["unlabelled"].values())
    if figures["catalogue"] and figures["labels"] and count:
        by_split = ", ".join(f"{split} {number}" for split, number in figures["unlabelled"].items() if number)
        yield f"{_number(count, 'recording')} without any label, beside labelled ones ({by_split})"


def _short(survey: Survey) -> Iterator[str]:
    short = [one for one in survey.recordings.values() if one.seconds is not None and one.seconds < SHORTEST]
    if short:
        names = _some(one.name for one in short)
        yield f"{_number(len(short), 'recording')} shorter than {SHORTEST:g} s ({names})"


def _rejected(figures: Mapping[str, Any]) -> Iterator[str]:
    kinds = figures["rejects"]
    if kinds:
        shown = [f"{count} × {shorten(kind, 60)}" for kind, count in list(kinds.items())[:_EXAMPLES]]
        shown += ["…"] if len(kinds) > _EXAMPLES else []
        yield f"{_number(sum(kinds.values()), 'pair')} left out by ingest: {'; '.join(shown)}"


def shorten(text: str, length: int) -> str:
    """``text`` in one line of at most ``length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def _number(count: int, noun: str) -> str:
    """``1 patient is``, ``2 patients are``."""
    return f"1 {noun} is" if count == 1 else f"{count:,} {noun}s are"


def _some(names: Iterable[str]) -> str:
    listed = [shorten(name, 40) for name in names]
    return ", ".join(listed[:_EXAMPLES]) + (", …" if len(listed) > _EXAMPLES else "")
