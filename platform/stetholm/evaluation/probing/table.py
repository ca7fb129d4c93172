"""The table of probes: Markdown, and the same as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stetholm import markdown
from stetholm.evaluation.bootstrap import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADER = ("features", "method", "judged on", "n", "patients", "AUROC", "accuracy, %")
CROSS = "cross-validation"
WIDTH_PX, ROW_PX, _HEAD, _FOOT, _BETWEEN = 1180, 34, 66, 62, 56


def to_markdown(report: Mapping[str, Any]) -> str:
    """A table a task, with what it is about above and how it was made below."""
    parts = [f"# Probes of {report['corpus']}"]
    for task in report["tasks"]:
        parts += [f"## {task['name']}", about(task), markdown.table(HEADER, map(_cells, task["rows"]), texts=3)]
    return "\n\n".join([*parts, caption(report)]) + "\n"


def about(task: Mapping[str, Any]) -> str:
    """Classes with their recordings, and what a constant answer reaches."""
    classes = ", ".join(f"{name} {count}" for name, count in task["classes"].items())
    return (
        f"Recordings: {classes}; {task['dropped']} of the same kind are of none of these. "
        f"Always the most frequent class: {100 * task['majority']:.1f} % of the split {task['test']}."
    )


def caption(report: Mapping[str, Any]) -> str:
    """How the figures were made."""
    chosen = report["settings"]
    return (
        f"In brackets: 95 % intervals by {chosen['draws']} bootstrap draws over patients. AUROC of more than two "
        f"classes: the mean of each against the others. Probes of the split {chosen['test']!r} are fitted on "
        f"{' and '.join(chosen['fit'])}; cross-validation has {chosen['folds']} patient-wise folds of all splits. "
        "A checkpoint's encoder has been trained on recordings that cross-validation judges it on: read its row of the "
        f"split. Zero-shot: {report['text_model'] or 'not asked'}."
    )


def estimate(figure: Mapping[str, float | None]) -> Estimate:
    """A figure of the report."""
    return Estimate(figure["value"], figure["low"], figure["high"])


def _cells(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        row["features"], row["method"], row["judged_on"], row["n"], row["patients"], estimate(row["auroc"]).plain(),
        estimate(row["accuracy"]).percent(),
    )  # fmt: skip


def draw(report: Mapping[str, Any]) -> bytes:
    """PNG: a panel a task, two bars a row with their intervals. It needs matplotlib."""
    from stetholm.audio.picture import new_figure, to_png

    tasks = report["tasks"]
    heights = [_HEAD + ROW_PX * len(task["rows"]) + _FOOT for task in tasks]
    height = sum(heights)
    figure = new_figure(WIDTH_PX, height)
    top = height
    for task, size in zip(tasks, heights, strict=True):
        inner = ROW_PX * len(task["rows"])
        box = (430 / WIDTH_PX, (top - _HEAD - inner) / height, 700 / WIDTH_PX, inner / height)
        _panel(figure.add_axes(box), task)
        top -= size
    return to_png(figure)


def _panel(axes: Axes, task: Mapping[str, Any]) -> None:
    from stetholm.audio.picture import COLOURS

    rows: Sequence[Mapping[str, Any]] = task["rows"]
    for number, (key, label) in enumerate((("auroc", "AUROC"), ("accuracy", "accuracy"))):
        found = [estimate(row[key]) for row in rows]
        places = [place + (number - 0.5) * 0.38 for place in range(len(rows))]
        values = [one.value or 0.0 for one in found]
        below = [value - (one.low if one.low is not None else value) for value, one in zip(values, found, strict=True)]
        above = [
            (one.high if one.high is not None else value) - value for value, one in zip(values, found, strict=True)
        ]
        errors = [[max(0.0, each) for each in side] for side in (below, above)]
        axes.barh(places, values, 0.36, xerr=errors, color=COLOURS[number], label=label, ecolor="#333333", capsize=2)
    axes.axvline(task["majority"], color="#333333", linewidth=0.9, linestyle="--", label="most frequent class, always")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    names = [f"{row['features']}\n{row['method']}, {row['judged_on']}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.tick_params(labelsize=8, length=2)
    axes.set_title(task["name"], loc="left", fontsize=12, weight="bold", pad=22)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=8, borderaxespad=0.2)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for tick in axes.get_yticklabels():
        tick.set_parse_math(False)
