"""The report as bars with 95 % intervals: tasks, and the class that is named. It needs matplotlib: import it late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stetholm.audio.picture import COLOURS, new_figure, to_png
from stetholm.evaluation.compare import TITLES
from stetholm.evaluation.conditions import CONDITIONS, CONTROL_NAMES
from stetholm.evaluation.table import OOD, OUT_OF_DOMAIN, conditions_of, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_PX, ROW_PX, BORDER_PX = 1200, 300, 110
GROUP = 0.8
"""Share of the axis that bars take; the rest is between groups."""

Group = tuple[str, Mapping[str, Any], str]
"""A label, figures by condition, and the metric among them."""


def draw_report(report: Mapping[str, Any]) -> bytes:
    """A panel each for label accuracy, clinical accuracy (where judged), BERTScore F1 and named classes, as PNG."""
    conditions = conditions_of(report)
    panels = _panels(report)
    figure = new_figure(WIDTH_PX, BORDER_PX + ROW_PX * len(panels))
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (name, groups) in zip(axes, panels, strict=True):
        _draw_panel(axis, name, groups, conditions)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), bbox_to_anchor=(0.5, 0.965), frameon=False)
    figure.suptitle(_short(title(report)), fontsize=10)
    top = 1.0 - 70 / (BORDER_PX + ROW_PX * len(panels))
    figure.tight_layout(rect=(0, 0.01, 1, top))
    return to_png(figure)


def _short(text: str, most: int = 150) -> str:
    return text if len(text) <= most else f"…{text[-most:]}"


def _panels(report: Mapping[str, Any]) -> list[tuple[str, list[Group]]]:
    groups = [*report["tasks"].items(), ("Overall", report["overall"])]
    if OOD in report["distributions"]:
        groups.append((OUT_OF_DOMAIN, report["distributions"][OOD]))
    metrics = ["label_accuracy", *(["clinical_accuracy"] if report.get("judge") else []), "bertscore_f1"]
    panels: list[tuple[str, list[Group]]] = [
        (f"{TITLES[metric]}, %", [(name, figures, metric) for name, figures in groups]) for metric in metrics
    ]
    named: list[Group] = []
    if report["binary"]["n"]:
        named.append((f"normal or\nabnormal ({report['binary']['n']})", report["binary"], "accuracy"))
    named += [
        (f"{table['kind']},\n{table['dataset']} ({table['n']})", table["conditions"], "accuracy")
        for table in report["classes"]
    ]
    return [*panels, *([("class named, accuracy, %", named)] if named else [])]


def _draw_panel(axis: Axes, name: str, groups: Sequence[Group], conditions: Sequence[str]) -> None:
    width = GROUP / len(conditions)
    for place, condition in enumerate(conditions):
        found = [(at, figures[condition], metric) for at, (_, figures, metric) in enumerate(groups)]
        known = [(at, figures, metric) for at, figures, metric in found if figures[metric] is not None]
        values = [100 * figures[metric] for _, figures, metric in known]
        axis.bar(
            [at + (place - (len(conditions) - 1) / 2) * width for at, _, _ in known],
            values,
            width * 0.92,
            yerr=_errors(known),
            error_kw={"lw": 1, "capsize": 2, "ecolor": "#333333"},
            color=COLOURS[CONDITIONS.index(condition)],
            label=CONTROL_NAMES.get(condition, "audio as it is"),
        )
    axis.set_xticks(range(len(groups)), [label for label, _, _ in groups], fontsize=8)
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.set_ylim(0, 105)
    axis.set_ylabel(name, fontsize=9)
    axis.grid(axis="y", lw=0.4, color="#cccccc")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _errors(known: Sequence[tuple[int, Mapping[str, Any], str]]) -> list[list[float]]:
    """Distances from the value down and up to the ends of its interval; 0 where it has none."""
    low, high = [], []
    for _, figures, metric in known:
        value = figures[metric]
        interval = figures["intervals"].get(metric) or [value, value]
        low.append(100 * max(0.0, value - interval[0]))
        high.append(100 * max(0.0, interval[1] - value))
    return [low, high]
