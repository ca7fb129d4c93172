"""From answers to figures: scores of each prediction, and their means by task, dataset and distribution."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stetholm.corpus.labels import label_match, status
from stetholm.evaluation.examples import Example
from stetholm.evaluation.metrics import Scorer, mean, rouge1

BINARY_TASK = "Classification"


@dataclass(frozen=True)
class Scored:
    """One example with its predictions and their scores, by condition. A condition that was not asked is missing."""

    example: Example
    predictions: dict[str, str]
    bertscore_f1: dict[str, float]
    rouge1: dict[str, float]
    label_match: dict[str, bool | None]


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


def figures(scored: Sequence[Scored], condition: str) -> dict[str, Any]:
    """Means over ``scored`` under one condition, None where nothing counts.

    ``n``, ``bertscore_f1``, ``rouge1``, and ``label_accuracy`` over the ``labelled`` ones, whose reference has a label.
    """
    asked = [one for one in scored if condition in one.predictions]
    labels = [one.label_match[condition] for one in asked]
    return {
        "n": len(asked),
        "bertscore_f1": mean([one.bertscore_f1[condition] for one in asked]),
        "rouge1": mean([one.rouge1[condition] for one in asked]),
        "label_accuracy": mean(labels),
        "labelled": sum(label is not None for label in labels),
    }


def grouped(
    scored: Sequence[Scored], key: Callable[[Example], str], conditions: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Figures by a property of the examples: ``{"Report": {"audio": {...}, "withheld": {...}}, ...}``."""
    groups: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        groups[key(one.example)].append(one)
    return {name: {c: figures(group, c) for c in conditions} for name, group in sorted(groups.items())}


def binary(scored: Sequence[Scored], conditions: Sequence[str]) -> dict[str, Any]:
    """Normal against abnormal over the Classification examples whose reference says which.

    Gives by condition ``accuracy`` and ``balanced_accuracy`` (the mean of both classes' recalls: 0.5 for an answer that
    is always the same), with ``n`` and the ``majority`` class's share, which a constant answer reaches.
    """
    truth = [(one, status(one.example.response)) for one in scored if one.example.task == BINARY_TASK]
    known = [(one, label) for one, label in truth if label]
    counts = Counter(label for _, label in known)
    result: dict[str, Any] = {"n": len(known), "majority": max(counts.values()) / len(known) if known else None}
    for condition in conditions:
        hits = [
            (label, status(one.predictions[condition]) == label) for one, label in known if condition in one.predictions
        ]
        recalls = [mean([hit for label, hit in hits if label == name]) for name in ("normal", "abnormal")]
        result[condition] = {"accuracy": mean([hit for _, hit in hits]), "balanced_accuracy": mean(recalls)}
    return result


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
        end = _suffix(conditions, name)
        row[f"prediction{end}"] = one.predictions.get(name)
        row[f"bertscore_f1{end}"] = one.bertscore_f1.get(name)
        row[f"rouge1{end}"] = one.rouge1.get(name)
        row[f"label_match{end}"] = one.label_match.get(name)
    return row


def _schema(conditions: Sequence[str]) -> pa.Schema:
    texts = ("sample_id", "task", "dataset", "distribution", "patient")
    fields: list[tuple[str, pa.DataType]] = [(name, pa.string()) for name in texts]
    fields += [("recording_ids", pa.list_(pa.string())), ("instruction", pa.string()), ("reference", pa.string())]
    for name in conditions:
        end = _suffix(conditions, name)
        fields += [(f"prediction{end}", pa.string()), (f"bertscore_f1{end}", pa.float64())]
        fields += [(f"rouge1{end}", pa.float64()), (f"label_match{end}", pa.bool_())]
    return pa.schema(fields)
