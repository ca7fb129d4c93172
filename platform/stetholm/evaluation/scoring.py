"""From answers to figures: scores of each prediction, and their means with intervals over patients."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from stetholm.corpus.labels import label_match, status
from stetholm.evaluation.bootstrap import DRAWS
from stetholm.evaluation.examples import Example
from stetholm.evaluation.intervals import Resampled, bounds, number, patient_cluster
from stetholm.evaluation.judge import Verdict
from stetholm.evaluation.metrics import Scorer, rouge1

BINARY_TASK = "Classification"
METRICS = ("bertscore_f1", "rouge1", "label_accuracy", "clinical_accuracy")


@dataclass(frozen=True)
class Scored:
    """One example with its predictions and their scores, by condition. A condition that was not asked is missing."""

    example: Example
    predictions: dict[str, str]
    bertscore_f1: dict[str, float]
    rouge1: dict[str, float]
    label_match: dict[str, bool | None]
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def cluster(self) -> str:
        """To whom it belongs, for the bootstrap."""
        return patient_cluster(self.example.dataset, self.example.patient, self.example.recording_ids)

    def metrics(self, condition: str) -> list[float]:
        """The values of :data:`METRICS`; NaN where there is none."""
        verdict = self.verdicts.get(condition)
        return [
            number(self.bertscore_f1.get(condition)),
            number(self.rouge1.get(condition)),
            number(self.label_match.get(condition)),
            number(verdict.correct if verdict else None),
        ]


@dataclass(frozen=True)
class Draws:
    """How intervals are drawn."""

    count: int = DRAWS
    seed: int = 0


DEFAULT = Draws()


def score(examples: Sequence[Example], predictions: Mapping[str, Sequence[str | None]], scorer: Scorer) -> list[Scored]:
    """Score the predictions of every condition against the references.

    Args:
        examples: what was asked.
        predictions: by condition, one for each example; None where the condition does not apply.
        scorer: gives the BERTScore F1.
    """
    places = [(row, name) for name, texts in predictions.items() for row, text in enumerate(texts) if text is not None]
    ours = [predictions[name][row] or "" for row, name in places]
    theirs = [examples[row].response for row, _ in places]
    scored = [Scored(example, {}, {}, {}, {}) for example in examples]
    for (row, name), text, f1, rouge in zip(places, ours, scorer(ours, theirs), rouge1(ours, theirs), strict=True):
        one = scored[row]
        one.predictions[name], one.bertscore_f1[name], one.rouge1[name] = text, f1, rouge
        one.label_match[name] = label_match(one.example.task, text, one.example.response)
    return scored


def figures(scored: Sequence[Scored], conditions: Sequence[str], draws: Draws = DEFAULT) -> dict[str, dict[str, Any]]:
    """Means over ``scored`` by condition, None where nothing counts.

    Each has ``n``; the :data:`METRICS`, with their 95 % ``intervals`` over patients; over how many the label accuracy
    (``labelled``) and the clinical accuracy (``judged``) are, and how many answers the judge left ``unjudged``.
    """
    if not scored:
        return {name: _figures(scored, name, None, 0) for name in conditions}
    columns = [[value for name in conditions for value in one.metrics(name)] for one in scored]
    resampled = Resampled(columns, [one.cluster for one in scored], draws.count, draws.seed)
    return {
        name: _figures(scored, name, resampled, place * len(METRICS)) for place, name in enumerate(conditions)
    }  # fmt: skip


def _figures(scored: Sequence[Scored], condition: str, resampled: Resampled | None, first: int) -> dict[str, Any]:
    asked = [one for one in scored if condition in one.predictions]
    verdicts = [one.verdicts[condition] for one in asked if condition in one.verdicts]
    found: dict[str, Any] = {"n": len(asked)}
    intervals: dict[str, list[float] | None] = {}
    for place, metric in enumerate(METRICS):
        estimate = resampled.column(first + place) if resampled else None
        found[metric] = estimate.value if estimate else None
        intervals[metric] = bounds(estimate) if estimate else None
    return {
        **found,
        "labelled": sum(one.label_match[condition] is not None for one in asked),
        "judged": sum(verdict.correct is not None for verdict in verdicts),
        "unjudged": sum(verdict.correct is None for verdict in verdicts),
        "intervals": intervals,
    }


def grouped(
    scored: Sequence[Scored], key: Callable[[Example], str], conditions: Sequence[str], draws: Draws = DEFAULT
) -> dict[str, dict[str, dict[str, Any]]]:
    """Figures by a property of the examples: ``{"Report": {"audio": {...}, "withheld": {...}}, ...}``."""
    groups: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        groups[key(one.example)].append(one)
    return {name: figures(group, conditions, draws) for name, group in sorted(groups.items())}


def cells(scored: Sequence[Scored], conditions: Sequence[str], draws: Draws = DEFAULT) -> list[dict[str, Any]]:
    """Figures of each task in each dataset and distribution."""
    names = {}
    for one in scored:
        example = one.example
        names["\0".join((example.task, example.dataset, example.distribution))] = example
    found = grouped(scored, lambda e: "\0".join((e.task, e.dataset, e.distribution)), conditions, draws)
    return [
        {"task": e.task, "dataset": e.dataset, "distribution": e.distribution, "conditions": found[key]}
        for key, e in sorted(names.items())
    ]


def binary(scored: Sequence[Scored], conditions: Sequence[str], draws: Draws = DEFAULT) -> dict[str, Any]:
    """Normal against abnormal over the Classification examples whose reference says which.

    Gives by condition ``accuracy`` and ``balanced_accuracy`` (the mean of both classes' recalls: 0.5 for an answer that
    is always the same) with their ``intervals``; and ``n`` and the ``majority`` class's share, which a constant answer
    reaches.
    """
    truth = [(one, status(one.example.response)) for one in scored if one.example.task == BINARY_TASK]
    known = [(one, label) for one, label in truth if label]
    counts = Counter(label for _, label in known)
    result: dict[str, Any] = {"n": len(known), "majority": max(counts.values()) / len(known) if known else None}
    hits = [[_hit(one, label, name) for name in conditions] for one, label in known]
    truths = [label for _, label in known]
    return result | recalls(hits, truths, [one.cluster for one, _ in known], conditions, draws, ("normal", "abnormal"))


def _hit(one: Scored, label: str, condition: str) -> float:
    text = one.predictions.get(condition)
    return number(None if text is None else status(text) == label)


def recalls(
    hits: Sequence[Sequence[float]],
    truths: Sequence[str],
    clusters: Sequence[str],
    conditions: Sequence[str],
    draws: Draws,
    classes: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Accuracy, and its mean over ``classes`` (balanced), by condition, with intervals.

    Args:
        hits: (n, conditions) 1 where the right class was named, 0 where not, NaN where not asked.
        truths: (n,) the right classes.
        clusters: (n,) patients.
        conditions: names of the columns.
        draws: of the bootstrap.
        classes: over which the balanced accuracy is the mean.
    """
    if not truths:
        empty: dict[str, Any] = {"accuracy": None, "balanced_accuracy": None, "intervals": {}}
        return {name: dict(empty) for name in conditions}
    width = 1 + len(classes)
    table = np.full((len(truths), len(conditions) * width), np.nan)
    for row, (one, truth) in enumerate(zip(hits, truths, strict=True)):
        for place, hit in enumerate(one):
            table[row, place * width] = hit
            if truth in classes:
                table[row, place * width + 1 + classes.index(truth)] = hit
    resampled = Resampled(table, clusters, draws.count, draws.seed)
    return {name: _recall(resampled, place * width, width) for place, name in enumerate(conditions)}


def _recall(resampled: Resampled, first: int, width: int) -> dict[str, Any]:
    accuracy = resampled.column(first)
    # A class that the examples do not have gives none; in a draw that misses one of the others the mean is not defined.
    there = [place for place in range(first + 1, first + width) if np.isfinite(resampled.means[place])]
    balanced = resampled.estimate(lambda means: means[..., there].mean(-1)) if there else accuracy
    intervals = {"accuracy": bounds(accuracy), "balanced_accuracy": bounds(balanced)}
    return {"accuracy": accuracy.value, "balanced_accuracy": balanced.value, "intervals": intervals}


def to_table(scored: Sequence[Scored], conditions: Sequence[str]) -> pa.Table:
    """All predictions and scores, one row an example; the first condition's columns have no suffix."""
    rows = [_row(one, conditions) for one in scored]
    return pa.Table.from_pylist(rows, schema=_schema(conditions))


def _suffix(conditions: Sequence[str], name: str) -> str:
    return "" if name == conditions[0] else f"_{name}"


def _row(one: Scored, conditions: Sequence[str]) -> dict[str, Any]:
    example = one.example
    row: dict[str, Any] = {
        "sample_id": example.sample_id,
        "task": example.task,
        "dataset": example.dataset,
        "distribution": example.distribution,
        "patient": example.patient,
        "recording_ids": list(example.recording_ids),
        "instruction": example.instruction,
        "reference": example.response,
    }
    for name in conditions:
        end, verdict = _suffix(conditions, name), one.verdicts.get(name)
        row[f"prediction{end}"] = one.predictions.get(name)
        row[f"bertscore_f1{end}"] = one.bertscore_f1.get(name)
        row[f"rouge1{end}"] = one.rouge1.get(name)
        row[f"label_match{end}"] = one.label_match.get(name)
        row[f"clinical_correct{end}"] = verdict.correct if verdict else None
        row[f"judge_reason{end}"] = verdict.reason if verdict else None
    return row


def _schema(conditions: Sequence[str]) -> pa.Schema:
    texts = ("sample_id", "task", "dataset", "distribution", "patient")
    fields: list[tuple[str, pa.DataType]] = [(name, pa.string()) for name in texts]
    fields += [("recording_ids", pa.list_(pa.string())), ("instruction", pa.string()), ("reference", pa.string())]
    for name in conditions:
        end = _suffix(conditions, name)
        fields += [(f"prediction{end}", pa.string()), (f"bertscore_f1{end}", pa.float64())]
        fields += [(f"rouge1{end}", pa.float64()), (f"label_match{end}", pa.bool_())]
        fields += [(f"clinical_correct{end}", pa.bool_()), (f"judge_reason{end}", pa.string())]
    return pa.schema(fields)
