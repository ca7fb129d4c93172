"""The report as a table: Markdown for the run's folder, rich for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from stetholm import markdown
from stetholm.evaluation.conditions import AUDIO, CONDITIONS, SHUFFLED, WITHHELD

WIDTH = 100
"""Columns of the terminal that the table needs at most."""

HEADER = ("", "n", "BERTScore F1", "ROUGE-1", "label accuracy", "withheld", "shuffled")
_CONTROL_NAMES = {WITHHELD: "Overall, audio withheld", SHUFFLED: "Overall, audio shuffled"}


def percent(value: float | None) -> str:
    """A share in per cent with one decimal; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Body of the table: the tasks, all together, the control rows, and normal against abnormal."""
    asked = [name for name in CONDITIONS if name in report["overall"]]
    body = [_row(task, figures) for task, figures in report["tasks"].items()]
    body.append(_row("Overall", report["overall"]))
    for name in asked[1:]:
        figures = report["overall"][name]
        body.append((_CONTROL_NAMES[name], *_figures(figures), "", ""))
    binary = report["binary"]
    if binary["n"]:
        body.append(("Normal or abnormal", str(binary["n"]), "", "", *_three(binary, "accuracy")))
        body.append(("  balanced accuracy", "", "", "", *_three(binary, "balanced_accuracy")))
    return body


def _figures(figures: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (percent(figures[key]) for key in ("bertscore_f1", "rouge1", "label_accuracy"))
    return (str(figures["n"]), *shares)


def _row(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    return (name, *_figures(figures[AUDIO]), *_three(figures, "label_accuracy")[1:])


def _three(figures: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """One figure under the three conditions."""
    return tuple(percent(figures[name][key]) if name in figures else "-" for name in CONDITIONS)


def caption(report: Mapping[str, Any]) -> str:
    """What the table's columns are."""
    return (
        f"Per cent. BERTScore backbone: {report['scorer']}; scores of other backbones cannot be compared. The last two "
        "columns: label accuracy with the audio withheld and with another recording's audio."
    )


def title(report: Mapping[str, Any]) -> str:
    """Which examples the table is about."""
    return (
        f"{report['checkpoint']} on split {report['split']!r}: {report['examples']} of {report['split_rows']} examples"
    )


def to_markdown(report: Mapping[str, Any]) -> str:
    """The table with title and caption."""
    return f"**{title(report)}**\n\n{markdown.table(HEADER, rows(report))}\n\n{caption(report)}\n"


def print_table(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table to the terminal, at most ``WIDTH`` columns wide."""
    console = console or Console()
    # In a log rich would assume 80 columns.
    console.width = width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    table = Table(title=title(report), caption=caption(report), width=width)
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="right" if index else "left", no_wrap=index == 0)
    body = rows(report)
    for index, row in enumerate(body):
        table.add_row(*row, end_section=index == len(report["tasks"]) - 1)
    console.print(table)
