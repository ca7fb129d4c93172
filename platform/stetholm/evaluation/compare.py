"""Two evaluations side by side: paired differences, example by example, with bootstrap intervals over patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stetholm import markdown
from stetholm.errors import UserError
from stetholm.evaluation.conditions import AUDIO
from stetholm.evaluation.earlier import find_earlier
from stetholm.evaluation.intervals import Resampled, number, patient_cluster, shown_difference
from stetholm.evaluation.scoring import METRICS, Draws
from stetholm.storage import Storage

COLUMNS = {
    "bertscore_f1": "bertscore_f1",
    "rouge1": "rouge1",
    "label_accuracy": "label_match",
    "clinical_accuracy": "clinical_correct",
}
"""Metric -> column of ``predictions.parquet``."""
OVERALL = "Overall"
TITLES = dict(zip(METRICS, ("BERTScore F1", "ROUGE-1", "label accuracy", "clinical accuracy"), strict=True))


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation as it lies on storage: its report, and a row an example by sample id."""

    uri: str
    report: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]


def find_evaluation(uri: str, storage: Storage, setting: str) -> str:
    """The evaluation that ``uri`` names: itself, or the latest one of the checkpoint at ``uri``.

    Raises:
        UserError: there is neither.
    """
    return find_earlier(uri, storage, setting, "evaluate", "report.json")


def read_evaluation(uri: str, storage: Storage) -> Evaluation:
    """Read a finished evaluation."""
    table = storage.read_table(f"{uri}/predictions.parquet")
    rows = {row["sample_id"]: row for row in table.to_pylist()}
    return Evaluation(uri, storage.read_json(f"{uri}/report.json"), rows)


def compare(ours: Evaluation, theirs: Evaluation, draws: Draws, setting: str) -> dict[str, Any]:
    """Differences ours minus theirs over the examples that both have answered, by task and over all.

    Returns:
        ``ours``, ``theirs`` (each ``evaluation`` and ``checkpoint``), ``n``, ``left_out`` (metrics that cannot be
        compared, and why) and ``tasks``: by task, and ``Overall``, ``n`` and by metric ``ours``, ``theirs``,
        ``difference`` and ``interval``.

    Raises:
        UserError: they have no example in common.
    """
    common = sorted(
        key
        for key in ours.rows.keys() & theirs.rows.keys()
        if ours.rows[key]["reference"] == theirs.rows[key]["reference"]
    )
    if not common:
        raise UserError(f"{setting}: {ours.uri} and {theirs.uri} have no example in common: evaluate the same split")
    left_out = _left_out(ours.report, theirs.report)
    metrics = [name for name in METRICS if name not in left_out]
    groups = {OVERALL: common}
    for key in common:
        groups.setdefault(ours.rows[key]["task"], []).append(key)
    return {
        "ours": {"evaluation": ours.uri, "checkpoint": ours.report["checkpoint"]},
        "theirs": {"evaluation": theirs.uri, "checkpoint": theirs.report["checkpoint"]},
        "n": len(common),
        "left_out": left_out,
        "tasks": {name: _differences(ours, theirs, keys, metrics, draws) for name, keys in groups.items()},
    }


def _left_out(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, str]:
    """Metrics whose two figures are not of one kind."""
    left_out = {}
    if ours["scorer"] != theirs["scorer"]:
        left_out["bertscore_f1"] = f"other backbones: {ours['scorer']} and {theirs['scorer']}"
    judges = [(one.get("judge") or {}).get("name") for one in (ours, theirs)]
    if None in judges:
        left_out["clinical_accuracy"] = "not judged in both"
    elif judges[0] != judges[1]:
        left_out["clinical_accuracy"] = f"other judges: {judges[0]} and {judges[1]}"
    return left_out


def _differences(
    ours: Evaluation, theirs: Evaluation, keys: list[str], metrics: list[str], draws: Draws
) -> dict[str, Any]:
    columns = []
    for key in keys:
        row = []
        for metric in metrics:
            pair = [number(one.rows[key].get(COLUMNS[metric])) for one in (ours, theirs)]
            # Only what both have counts: the difference is paired.
            row += pair if all(value == value for value in pair) else [float("nan")] * 2
        columns.append(row)
    clusters = [_cluster(ours.rows[key]) for key in keys]
    resampled = Resampled(columns, clusters, draws.count, draws.seed)
    return {"n": len(keys), **{metric: resampled.difference(2 * place) for place, metric in enumerate(metrics)}}


def control_margin(evaluation: Evaluation, control: str, metric: str, draws: Draws) -> dict[str, Any]:
    """How much better the answers with audio are than those of a control row, over the examples that have both."""
    column = COLUMNS[metric]
    rows = list(evaluation.rows.values())
    pairs = [[number(row.get(column)), number(row.get(f"{column}_{control}"))] for row in rows]
    known = [pair if all(value == value for value in pair) else [float("nan")] * 2 for pair in pairs]
    clusters = [_cluster(row) for row in rows]
    return Resampled(known, clusters, draws.count, draws.seed).difference(0)


def _cluster(row: Mapping[str, Any]) -> str:
    return patient_cluster(row["dataset"], row["patient"], row["recording_ids"])


def to_markdown(found: Mapping[str, Any]) -> str:
    """The comparison as a table."""
    metrics = [name for name in METRICS if name not in found["left_out"]]
    header = ["", "n", *(f"{TITLES[name]}: ours / theirs / difference" for name in metrics)]
    rows = [
        [task, one["n"], *(shown_difference(one[metric], 1, 100) for metric in metrics)]
        for task, one in sorted(found["tasks"].items(), key=lambda item: (item[0] == OVERALL, item[0]))
    ]
    lines = [
        f"**Ours: {found['ours']['checkpoint']}. Theirs: {found['theirs']['checkpoint']}.**",
        markdown.table(header, rows),
        f"Per cent, audio as it is, over the {found['n']} examples that both have answered. Differences are paired, "
        "with 95 % bootstrap intervals over patients; an interval without 0 in it is a difference.",
        *(f"Left out: {TITLES[name]} ({why})." for name, why in found["left_out"].items()),
    ]
    return "\n\n".join(lines) + "\n"


def is_control(report: Mapping[str, Any], name: str) -> bool:
    """Whether an evaluation has that control row."""
    return name != AUDIO and name in report["overall"]
