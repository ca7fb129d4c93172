"""How a log-mel spectrogram is drawn, with what was annotated in it above. It needs matplotlib: import it late."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stetholm.audio.features import CLIP_SECONDS, FMAX, FMIN, FRAME_SECONDS, N_FRAMES, N_MELS, hz_to_mel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EventRow = Mapping[str, Any]
"""A row ``start``, ``end`` (seconds), ``label``, as catalogues have it."""

DPI = 100
TICKS_HZ = (100, 500, 1000, 2000, 4000, 8000)
LANES, LANE_PX = 3, 7
"""Most rows of event bars above a spectrogram, and how high they are."""
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255",
    "#44aa99", "#999933", "#661100", "#aa4499", "#117733", "#f0c800", "#6699cc", "#000000",
)  # fmt: skip
"""Okabe and Ito's and Paul Tol's: the first ones, of the most frequent kinds, are told apart by all readers."""
OTHER = "#999999"
COLOUR_MAP = "magma"


def new_figure(width_px: int, height_px: int) -> Figure:
    """An empty white figure of so many pixels."""
    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a script that the font lacks: a box is drawn
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return png.getvalue()


def mel_row(hz: float) -> float:
    """Row of a log-mel on which a frequency falls, with fractions; row 0 is the centre of the lowest band."""
    low, high = hz_to_mel(FMIN), hz_to_mel(FMAX)
    return (hz_to_mel(hz) - low) / (high - low) * (N_MELS + 1) - 1


def heard(events: Iterable[EventRow]) -> list[EventRow]:
    """Events in the seconds that are shown."""
    return [event for event in events if event["start"] < CLIP_SECONDS]


def event_colours(recordings: Iterable[Iterable[EventRow]]) -> dict[str, str]:
    """A colour for each label of an event, the most frequent ones first; the rest share one."""
    counts: dict[str, int] = {}
    for events in recordings:
        for event in heard(events):
            counts[event["label"]] = counts.get(event["label"], 0) + 1
    labels = sorted(counts, key=lambda label: (-counts[label], label))
    return {label: COLOURS[number] if number < len(COLOURS) else OTHER for number, label in enumerate(labels)}


def draw_spectrogram(axes: Axes, log_mel: NDArray[np.float32], seconds: float | None) -> None:
    """Show ``log_mel`` (64, 218) over seconds and bands; what follows the end of a short recording is hatched.

    Args:
        axes: where.
        log_mel: in [0, 1].
        seconds: length of the recording; None if unknown.
    """
    half = FRAME_SECONDS / 2
    extent = (-half, N_FRAMES * FRAME_SECONDS - half, -0.5, N_MELS - 0.5)
    axes.imshow(log_mel, origin="lower", aspect="auto", cmap=COLOUR_MAP, vmin=0, vmax=1, extent=extent)
    axes.set_xlim(0, CLIP_SECONDS)
    axes.set_ylim(-0.5, N_MELS - 0.5)
    axes.set_facecolor("#eeeeee")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if seconds is not None and seconds < CLIP_SECONDS - FRAME_SECONDS:
        axes.axvspan(seconds, CLIP_SECONDS, facecolor="#eeeeee", edgecolor="#bbbbbb", hatch="//", linewidth=0)


def label_axes(axes: Axes, *, hz: bool, seconds: bool) -> None:
    """Ticks at whole seconds and round frequencies; numbers and unit only where asked for."""
    axes.set_xticks(range(0, int(CLIP_SECONDS) + 1), [f"{s}" for s in range(int(CLIP_SECONDS) + 1)] if seconds else [])
    axes.set_yticks([mel_row(tick) for tick in TICKS_HZ], [f"{tick}" for tick in TICKS_HZ] if hz else [])
    axes.tick_params(labelsize=9, length=3, color="#888888")
    if seconds:
        axes.set_xlabel("s", fontsize=9, labelpad=1)
    if hz:
        axes.set_ylabel("Hz", fontsize=9, labelpad=1)


def draw_events(axes: Axes, events: Iterable[EventRow], colours: Mapping[str, str], height_px: float) -> None:
    """Events as bars in the strip above ``axes``; kinds that overlap in time lie in lanes of their own.

    Args:
        axes: of a spectrogram.
        events: of its recording.
        colours: by label (:func:`event_colours`).
        height_px: of the axes.
    """
    shown = heard(events)
    lanes, depth = event_lanes(shown), LANE_PX / height_px
    for event in shown:
        start, end = max(0.0, event["start"]), min(event["end"], CLIP_SECONDS)
        bottom = 1.015 + lanes[event["label"]] * depth
        # A click lasts milliseconds: every bar is at least two pixels wide.
        axes.axvspan(
            start, max(end, start + 0.035), bottom, bottom + 0.85 * depth, clip_on=False, linewidth=0,
            facecolor=colours[event["label"]],
        )  # fmt: skip


def event_lanes(events: Iterable[EventRow]) -> dict[str, int]:
    """The lane of each kind of event: the lowest in which nothing of another kind overlaps it, at most ``LANES``."""
    by_label: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        by_label.setdefault(event["label"], []).append((event["start"], event["end"]))
    taken: list[list[tuple[float, float]]] = [[] for _ in range(LANES)]
    lanes = {}
    for label, spans in sorted(by_label.items(), key=lambda item: -sum(end - start for start, end in item[1])):
        free = (lane for lane in range(LANES) if not _overlap(spans, taken[lane]))
        lanes[label] = next(free, LANES - 1)
        taken[lanes[label]] += spans
    return lanes


def _overlap(spans: Iterable[tuple[float, float]], others: Sequence[tuple[float, float]]) -> bool:
    return any(start < end2 and start2 < end for start, end in spans for start2, end2 in others)
