"""Accuracy of the class that an answer names, for the classes that a corpus's own references name.

The class of a text is what it asserts of one kind (diagnoses, or findings), the most specific ones, by the rules of
:mod:`stetholm.corpus.labels`; "normal" where it asserts none and calls the sound normal. A task of a dataset counts
where its references name a class other than "normal": "abnormal" alone is no class. Comparisons and locations are left
out: they speak of several recordings, or of a site.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from stetholm.corpus.labels import findings, status
from stetholm.corpus.ontology import Kind, ontology
from stetholm.evaluation.conditions import AUDIO
from stetholm.evaluation.intervals import number
from stetholm.evaluation.scoring import DEFAULT, Draws, Scored, recalls

KINDS: tuple[Kind, ...] = ("diagnosis", "finding")
NORMAL = "normal"
NONE = "(none)"
_LEFT_OUT = ("Comparison", "Location")


class _Case(NamedTuple):
    scored: Scored
    truth: str


def class_of(text: str, kind: Kind) -> str | None:
    """The class that ``text`` names: several at once are joined with ``+``; None where it names none."""
    leaves = ontology().leaves(findings(text), kind)
    if leaves:
        return " + ".join(sorted(leaves))
    return NORMAL if status(text) == NORMAL else None


def class_tables(scored: Sequence[Scored], conditions: Sequence[str], draws: Draws = DEFAULT) -> list[dict[str, Any]]:
    """A table for each dataset and kind of class of which its references name two at least.

    Each has ``dataset``, ``kind``, ``n``, ``classes`` (how many examples each has), ``majority`` (the share that a
    constant answer reaches), by condition under ``conditions`` ``accuracy`` and ``balanced_accuracy`` with
    ``intervals``, the same by task under ``tasks``, and ``confusion`` (right class, named class, how often).
    """
    tables = []
    for dataset in sorted({one.example.dataset for one in scored}):
        for kind in KINDS:
            cases = _cases([one for one in scored if one.example.dataset == dataset], kind)
            if len({case.truth for case in cases}) > 1:
                tables.append(_table(dataset, kind, cases, conditions, draws))
    return tables


def _cases(scored: Sequence[Scored], kind: Kind) -> list[_Case]:
    by_task: dict[str, list[_Case]] = defaultdict(list)
    for one in scored:
        if one.example.task not in _LEFT_OUT and len(one.example.recording_ids) == 1:
            truth = class_of(one.example.response, kind)
            if truth is not None:
                by_task[one.example.task].append(_Case(one, truth))
    return [case for cases in by_task.values() if {c.truth for c in cases} - {NORMAL} for case in cases]


def _table(dataset: str, kind: Kind, cases: list[_Case], conditions: Sequence[str], draws: Draws) -> dict[str, Any]:
    counts = Counter(case.truth for case in cases)
    tasks = sorted({case.scored.example.task for case in cases})
    of_task = {task: [case for case in cases if case.scored.example.task == task] for task in tasks}
    return {
        "dataset": dataset,
        "kind": kind,
        "n": len(cases),
        "classes": dict(counts.most_common()),
        "majority": max(counts.values()) / len(cases),
        "conditions": _accuracy(cases, kind, conditions, draws),
        "tasks": {task: {"n": len(own), **_accuracy(own, kind, conditions, draws)} for task, own in of_task.items()},
        "confusion": _confusion(cases, kind),
    }


def _accuracy(cases: list[_Case], kind: Kind, conditions: Sequence[str], draws: Draws) -> dict[str, dict[str, Any]]:
    hits = [[_hit(case, kind, name) for name in conditions] for case in cases]
    truths = [case.truth for case in cases]
    clusters = [case.scored.cluster for case in cases]
    return recalls(hits, truths, clusters, conditions, draws, sorted(set(truths)))


def _hit(case: _Case, kind: Kind, condition: str) -> float:
    text = case.scored.predictions.get(condition)
    return number(None if text is None else class_of(text, kind) == case.truth)


def _confusion(cases: list[_Case], kind: Kind) -> list[list[Any]]:
    named = Counter(
        (case.truth, class_of(case.scored.predictions[AUDIO], kind) or NONE)
        for case in cases
        if AUDIO in case.scored.predictions
    )
    return [[truth, name, count] for (truth, name), count in sorted(named.items())]
