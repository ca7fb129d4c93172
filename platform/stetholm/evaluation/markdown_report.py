"""``report.md``: every figure with its interval, and the paper's table beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stetholm import markdown
from stetholm.evaluation.compare import TITLES
from stetholm.evaluation.conditions import AUDIO, CONTROL_NAMES
from stetholm.evaluation.published import published
from stetholm.evaluation.scoring import METRICS
from stetholm.evaluation.table import (
    OOD,
    OUT_OF_DOMAIN,
    conditions_of,
    percent,
    title,
    to_markdown,
    with_interval,
)

MOST_CLASSES = 12
"""A confusion table of more is left to report.json."""


def full_report(report: Mapping[str, Any]) -> str:
    """The whole of it in Markdown."""
    sections = {
        "In short": to_markdown(report).strip(),
        "By task": _metrics(report, _with_overall(report)),
        "By dataset": _metrics(report, report["datasets"]),
        "By distribution": _metrics(report, report["distributions"]),
        "By task, dataset and distribution": _cells(report),
        "Normal or abnormal": _binary(report),
        "The class that is named": _classes(report),
        "Judge and labels": _judge(report),
        "The paper's table beside ours": published_table(report),
        "What was trained on": _lineage(report),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items() if text)
    return f"# {title(report)}\n\n{body}\n"


def _metric_names(report: Mapping[str, Any]) -> list[str]:
    return [name for name in METRICS if name != "clinical_accuracy" or report.get("judge")]


def _condition(name: str) -> str:
    return CONTROL_NAMES.get(name, "audio as it is")


def _with_overall(report: Mapping[str, Any]) -> dict[str, Any]:
    return {**report["tasks"], "Overall": report["overall"]}


def _metrics(report: Mapping[str, Any], groups: Mapping[str, Any]) -> str:
    """One row a group and condition."""
    return _metric_table(report, [""], (([name], figures) for name, figures in groups.items()))


def _metric_table(
    report: Mapping[str, Any], names: Sequence[str], groups: Iterable[tuple[Sequence[str], Mapping[str, Any]]]
) -> str:
    metrics = _metric_names(report)
    head = [*names, "", "n", *(TITLES[name] for name in metrics)]
    body = [
        [*labels, _condition(one), figures[one]["n"], *(with_interval(figures[one], name) for name in metrics)]
        for labels, figures in groups
        for one in conditions_of(report)
    ]
    return markdown.table(head, body, texts=len(names) + 1)


def _cells(report: Mapping[str, Any]) -> str:
    cells = (([cell["task"], cell["dataset"], cell["distribution"]], cell["conditions"]) for cell in report["cells"])
    return _metric_table(report, ["task", "dataset", "distribution"], cells)


def _binary(report: Mapping[str, Any]) -> str:
    binary = report["binary"]
    if not binary["n"]:
        return ""
    return (
        f"Over {binary['n']} Classification examples; a constant answer reaches {percent(binary['majority'])}.\n\n"
        f"{_accuracies(report, binary)}"
    )


def _accuracies(report: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    body = [
        [_condition(one), *(with_interval(found[one], name) for name in ("accuracy", "balanced_accuracy"))]
        for one in conditions_of(report)
    ]
    return markdown.table(["", "accuracy", "balanced accuracy"], body)


def _classes(report: Mapping[str, Any]) -> str:
    return "\n\n".join(_class_table(report, table) for table in report["classes"])


def _class_table(report: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in table["classes"].items())
    tasks = [
        [task, found["n"], *(with_interval(found[one], "accuracy") for one in conditions_of(report))]
        for task, found in table["tasks"].items()
    ]
    head = ["accuracy", "n", *(_condition(one) for one in conditions_of(report))]
    parts = [
        f"**{table['dataset']}, {table['kind']}**: {table['n']} answers of which the reference names one: {counts}. A "
        f"constant answer reaches {percent(table['majority'])}.",
        _accuracies(report, table["conditions"]),
        markdown.table(head, tasks),
    ]
    if len(table["classes"]) <= MOST_CLASSES:
        parts.append(_confusion(table))
    return "\n\n".join(parts)


def _confusion(table: Mapping[str, Any]) -> str:
    counts = {(truth, named): count for truth, named, count in table["confusion"]}
    others = sorted({named for _, named in counts} - table["classes"].keys())
    columns = [*table["classes"], *others]
    body = [[truth, *(counts.get((truth, named), 0) for named in columns)] for truth in table["classes"]]
    return markdown.table(["right class / named", *columns], body)


def _judge(report: Mapping[str, Any]) -> str:
    judge = report.get("judge")
    if not judge:
        return ""
    lines = [f"Judge: {judge['name']}. {judge['judged']} answers judged, {judge['unjudged']} not."]
    body = [
        [_condition(name), one["n"], percent(one["rate"]), "-" if one["kappa"] is None else f"{one['kappa']:.3f}"]
        for name, one in judge["agreement"].items()
        if one["n"]
    ]
    if body:
        lines.append(markdown.table(["judged by both judge and ontology", "n", "agree, %", "Cohen's kappa"], body))
    if judge["reasons"]:
        lines.append("Unjudged, most frequent reasons:")
        lines.append("\n".join(f"- {count} x {markdown.cell(reason)}" for reason, count in judge["reasons"]))
    return "\n\n".join(lines)


def published_table(report: Mapping[str, Any]) -> str:
    """The paper's figures beside ours, marked as theirs."""
    theirs = published()
    head = ["BERTScore F1 / clinical accuracy", "**ours**", *(f"theirs: {name}" for name in theirs.models)]
    groups = [*report["tasks"].items(), ("Overall", report["overall"])]
    if OOD in report["distributions"]:
        groups.append((OUT_OF_DOMAIN, report["distributions"][OOD]))
    body = [
        [
            name,
            f"{percent(one[AUDIO]['bertscore_f1'])} / {percent(one[AUDIO]['clinical_accuracy'])}",
            *theirs.cells(name),
        ]
        for name, one in groups
    ]
    judge = report["judge"]["name"] if report.get("judge") else "none"
    return (
        f"{markdown.table(head, body)}\n\n"
        f"**Not comparable.** Theirs: {theirs.source}, on StethoBench's test sets, with a BERTScore backbone, a judge "
        f"and a prompt that are not public (ROUGE-1 overall {theirs.rouge1}). Ours: the split above, backbone "
        f"{report['scorer']}, judge {judge}, ROUGE-1 overall {percent(report['overall'][AUDIO]['rouge1'])}."
    )


def _lineage(report: Mapping[str, Any]) -> str:
    seen = report["lineage"]
    lines = [
        f"{seen['seen_patients']} patients and {seen['seen_recordings']} recordings of this split stand in the train "
        f"splits of the lineage's {len(seen['corpora'])} corpora."
    ]
    lines += [f"Not compared: {markdown.cell(gap)}" for gap in seen["not_compared"]]
    return "\n\n".join(lines)
