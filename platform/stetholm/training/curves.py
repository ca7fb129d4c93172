"""A picture of a stage's curves, put beside each checkpoint as ``curves.png``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stetholm.training.history import FILE, History, Record

SPAN = 0.03
"""Of the smoothed line: the share of the curve over which it averages, three points at least."""
POINTS = 2000
"""Most points that are drawn of a curve."""
TERMS = ("contrastive", "scale", "caption", "dpo", "conditional", "anchor", "audio_margin", "margin", "variance")
"""What the stages note of their losses; other noted numbers are in the data and in the trackers."""
_COLOURS = ("#1f5fa8", "#c2571a", "#2e8b57", "#7a4fa3", "#a8324a", "#5c5c5c", "#b08d00")


PICTURE = "curves.png"
"""In a checkpoint's folder, and when a stage is done in the stage's."""


def draw_checkpoint(folder: Path, title: str) -> None:
    """Draw the history in the checkpoint ``folder`` into it; nothing where there is none."""
    if (folder / FILE).exists():
        draw_curves(History.read(folder), title, folder / PICTURE)


def draw_curves(history: History, title: str, path: Path) -> None:
    """Write the PNG: loss, its terms, learning rate, speed, waiting and padding, evaluations of checkpoints.

    The thin lines are what was logged, the thick ones are smoothed.

    Args:
        history: what is known.
        title: of the picture.
        path: of the PNG.
    """
    records = history.training()
    terms = tuple(name for name in TERMS if any(name in record for record in records))
    panels = [("loss",), terms, ("tokens_per_s",), ("learning_rate",), ("grad_norm",), ("data_wait", "padding")]
    figure = Figure(figsize=(14, 7))
    FigureCanvasAgg(figure)
    # Not a layout engine: it would take most of the time, and training waits.
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.07, top=0.92, wspace=0.18, hspace=0.25)
    figure.suptitle(title)
    for place, names in enumerate(panels, start=1):
        if names:
            _panel(figure.add_subplot(2, 3, place), names, records, history.validation())
    figure.savefig(path, dpi=90)


def _panel(axes: Any, names: Sequence[str], records: Sequence[Record], validation: Sequence[Record]) -> None:
    axes.grid(alpha=0.25)
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)
    for index, name in enumerate(names):
        _line(axes, name, records, _COLOURS[index % len(_COLOURS)])
    if names == ("loss",):
        _points(axes, validation)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
    if names[0] in ("tokens_per_s", "grad_norm"):
        axes.set_ylim(bottom=0)
    if names[0] == "data_wait":
        axes.set_ylim(0, max(0.1, axes.get_ylim()[1]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _line(axes: Any, name: str, records: Sequence[Record], colour: str) -> None:
    values = [(record["step"], record[name]) for record in records if name in record]
    if not values:
        return
    steps, raw = np.array(values, dtype=float).T
    every, label = -(-len(steps) // POINTS), name.replace("_per_", "/").replace("_", " ")
    if name == "learning_rate":
        axes.plot(steps[::every], raw[::every], color=colour, linewidth=1.8, label=label)
        return
    axes.plot(steps[::every], raw[::every], color=colour, linewidth=0.7, alpha=0.4)
    marker = "o" if len(steps) < 3 else None
    axes.plot(steps[::every], smooth(raw)[::every], color=colour, linewidth=2, marker=marker, label=label)


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of each value (n,) and its neighbours on both sides, as many as there are within the span."""
    half = max(1, round(len(values) * SPAN / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _points(axes: Any, validation: Sequence[Record]) -> None:
    points = [(record["step"], record["val_loss"]) for record in validation if "val_loss" in record]
    if points:
        axes.plot(*zip(*points, strict=True), "o--", color="#111111", markersize=4, linewidth=1, label="validation")
