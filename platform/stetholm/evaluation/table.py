"""The report as a short table: Markdown for the run's folder, rich for the terminal. All: markdown_report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from stetholm import markdown
from stetholm.evaluation.conditions import AUDIO, CONDITIONS, CONTROL_NAMES, CONTROLS

WIDTH = 100
"""Columns of the terminal that the table needs at most."""

OOD = "OOD"
"""The distribution of what no corpus of training has."""
OUT_OF_DOMAIN = "Out of domain"
_INTERVAL = re.compile(r" \(([\d.]+)-([\d.]+)\)$")


def percent(value: float | None) -> str:
    """A share in per cent with one decimal; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def with_interval(figures: Mapping[str, Any], metric: str) -> str:
    """``83.8 (75.0-91.2)``, in per cent; without the interval where there is none."""
    interval = figures.get("intervals", {}).get(metric)
    shown = percent(figures[metric])
    return shown if interval is None else f"{shown} ({percent(interval[0])}-{percent(interval[1])})"


def conditions_of(report: Mapping[str, Any]) -> list[str]:
    """The conditions that were asked, the audio first."""
    return [name for name in CONDITIONS if name in report["overall"]]


def header(report: Mapping[str, Any]) -> list[str]:
    """Names of the columns. Those of the control rows hold label accuracies, or accuracies where the row has one."""
    judged = ["clinical accuracy"] if report.get("judge") else []
    return ["", "n", "BERTScore F1", "ROUGE-1", "label accuracy", *judged, *conditions_of(report)[1:]]


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Body of the table: tasks, all together, out of domain, control rows, normal or abnormal, the class named."""
    body = [_row(report, task, figures) for task, figures in report["tasks"].items()]
    body.append(_row(report, "Overall", report["overall"]))
    beyond = report.get("distributions", {}).get(OOD)
    if beyond:
        body.append(_row(report, OUT_OF_DOMAIN, beyond))
    for name in conditions_of(report)[1:]:
        blank = [""] * len(conditions_of(report)[1:])
        body.append((f"Overall, {CONTROL_NAMES[name]}", *_figures(report, report["overall"][name]), *blank))
    binary = report["binary"]
    if binary["n"]:
        body.append(_accuracy(report, "Normal or abnormal", binary["n"], binary, "accuracy"))
        body.append(_accuracy(report, "  balanced accuracy", "", binary, "balanced_accuracy"))
    for table in report.get("classes", []):
        name = f"{table['kind'].capitalize()} named, {table['dataset']}"
        body.append(_accuracy(report, name, table["n"], table["conditions"], "accuracy"))
    return body


def _figures(report: Mapping[str, Any], figures: Mapping[str, Any]) -> tuple[str, ...]:
    shares = [percent(figures["bertscore_f1"]), percent(figures["rouge1"]), with_interval(figures, "label_accuracy")]
    judged = [with_interval(figures, "clinical_accuracy")] if report.get("judge") else []
    return (str(figures["n"]), *shares, *judged)


def _row(report: Mapping[str, Any], name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    controls = (percent(figures[one]["label_accuracy"]) for one in conditions_of(report)[1:])
    return (name, *_figures(report, figures[AUDIO]), *controls)


def _accuracy(
    report: Mapping[str, Any], name: str, n: int | str, found: Mapping[str, Any], metric: str
) -> tuple[str, ...]:
    judged = [""] if report.get("judge") else []
    controls = (percent(found[one][metric]) for one in conditions_of(report)[1:])
    return (name, str(n), "", "", with_interval(found[AUDIO], metric), *judged, *controls)


def caption(report: Mapping[str, Any]) -> str:
    """What the table's columns are."""
    parts = [
        f"Per cent, in brackets 95 % bootstrap intervals over patients. BERTScore backbone: {report['scorer']}; scores "
        "of other backbones cannot be compared."
    ]
    if report.get("judge"):
        parts.append(f"Clinical accuracy by {report['judge']['name']}.")
    controls = [CONTROL_NAMES[name] for name in CONTROLS if name in report["overall"]]
    if controls:
        parts.append(f"The last columns: label accuracy with {'; '.join(controls)}.")
    return " ".join(parts)


def title(report: Mapping[str, Any]) -> str:
    """Which examples the table is about."""
    return (
        f"{report['checkpoint']} on split {report['split']!r}: {report['examples']} of {report['split_rows']} examples"
    )


def to_markdown(report: Mapping[str, Any]) -> str:
    """The table with title and caption."""
    return f"**{title(report)}**\n\n{markdown.table(header(report), rows(report))}\n\n{caption(report)}\n"


def print_table(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table to the terminal, at most ``WIDTH`` columns wide."""
    console = console or Console()
    # In a log rich would assume 80 columns.
    console.width = width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    table = Table(
        title=title(report), caption=caption(report), width=width, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for index, name in enumerate(header(report)):
        table.add_column(
            name.replace(" ", "\n"), justify="right" if index else "left", no_wrap=index > 0, min_width=14 * (not index)
        )
    body = rows(report)
    for index, row in enumerate(body):
        table.add_row(*map(_narrow, row), end_section=index == len(report["tasks"]) - 1)
    console.print(table)


def _narrow(cell: str) -> str:
    """For the terminal: the interval below the value, in whole per cent."""
    return _INTERVAL.sub(lambda hit: f"\n({float(hit[1]):.0f}-{float(hit[2]):.0f})", cell)
