"""Pictures of explanations: the attention map with its borders, and occlusion under the spectrogram.

It needs matplotlib: import it late.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from stetholm.audio.features import CLIP_SECONDS
from stetholm.audio.picture import (
    COLOURS,
    EventRow,
    draw_events,
    draw_spectrogram,
    event_colours,
    label_axes,
    new_figure,
    to_png,
)
from stetholm.model.explain.asking import Span
from stetholm.model.explain.attending import Attention
from stetholm.model.explain.occluding import Occlusion, Timeline

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL_PX = 17
"""Of a token: its label is legible."""
_LEFT, _RIGHT, _TOP, _BOTTOM, _BARS, _GAP = 120, 40, 110, 120, 240, 24
_NARROWEST = 30
"""Columns that a map has room for at least, so that its title fits."""
_STRONGEST = 99.5
"""Percentile of the weights that is the end of the colour scale: one sink would make all others dark."""
_TOKEN_LETTERS = 14

WIDTH_PX, IMAGE_PX, CURVE_PX = 1200, 200, 120
_OCC_LEFT, _OCC_RIGHT, _OCC_HEAD, _EVENTS_PX, _BETWEEN, _FOOT = 80, 30, 110, 40, 14, 46
FOR, AGAINST = COLOURS[1], COLOURS[0]


def draw_attention(found: Attention, layer: int | None = None) -> bytes:
    """PNG: a row a token of the answer, a column a position, borders between the spans, shares by span at the right.

    Args:
        found: what :func:`~stetholm.model.explain.attention` gave.
        layer: which layer to show, from 0; default: the mean over all.
    """
    weights = found.weights if layer is None else found.by_layer[layer]
    rows, columns = weights.shape
    wide, high = max(columns, _NARROWEST) * CELL_PX, rows * CELL_PX
    width, height = _LEFT + wide + _GAP + _BARS + _RIGHT, _TOP + high + _BOTTOM
    figure = new_figure(width, height)
    what = "mean over heads and layers" if layer is None else f"layer {layer}, mean over heads"
    _title(figure, found.instruction, found.answer, f"attention of each token of the answer ({what})", width, height)
    box = (_LEFT / width, _BOTTOM / height, columns * CELL_PX / width, high / height)
    axes = figure.add_axes(box)
    _heat(axes, weights, found)
    _scale(figure, axes, (_LEFT / width, 22 / height, 200 / width, 10 / height))
    bars = figure.add_axes(((_LEFT + wide + _GAP) / width, box[1], _BARS / width, box[3]))
    _shares(bars, weights, found.spans)
    return to_png(figure)


def _title(figure: Figure, question: str, answer: str, what: str, width: int, height: int) -> None:
    letters = max(20, int((width - 2 * 16) / 7.2))
    for text, y, size, weight in (
        (f"Q: {question}", 22, 11, "bold"),
        (f"A: {answer}", 43, 11, "normal"),
        (what, 63, 9, "normal"),
    ):
        figure.text(
            16 / width, 1 - y / height, textwrap.shorten(text, letters, placeholder=" …"), fontsize=size,
            weight=weight, va="center", parse_math=False,
        )  # fmt: skip


def _heat(axes: Axes, weights: NDArray[np.float32], found: Attention) -> None:
    rows, columns = weights.shape
    seen = weights[weights > 0]
    top = float(np.percentile(seen, _STRONGEST)) if len(seen) else 1.0
    future = np.arange(columns) >= found.prompt_length + np.arange(rows)[:, None]
    shown = np.ma.masked_array(weights, future)
    axes.set_facecolor("#eeeeee")
    axes.imshow(shown, aspect="auto", cmap="viridis", norm=PowerNorm(0.5, 0, top), interpolation="nearest")
    for span in found.spans:
        if span.start:
            axes.axvline(span.start - 0.5, color="#d62728", linewidth=1.6)
        _span_name(axes, span)
    axes.set_xticks(range(columns), [_shown(token) for token in found.tokens], rotation=90, fontsize=8)
    axes.set_yticks(range(rows), [_shown(token) for token in found.tokens[found.prompt_length :]], fontsize=8)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)
    axes.tick_params(length=2, pad=2)


def _span_name(axes: Axes, span: Span) -> None:
    """Above the span; aslant where it is narrower than its name."""
    narrow = (span.stop - span.start) * CELL_PX < 7 * len(span.name)
    place = (span.start - 0.5 if not narrow else (span.start + span.stop - 1) / 2, 1.0)
    axes.annotate(
        span.name, place, (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=9,
        color="#d62728", rotation=30 if narrow else 0, rotation_mode="anchor", annotation_clip=False,
    )  # fmt: skip


def _scale(figure: Figure, axes: Axes, box: tuple[float, float, float, float]) -> None:
    image = axes.get_images()[0]
    bar = figure.colorbar(
        ScalarMappable(norm=image.norm, cmap=image.get_cmap()), cax=figure.add_axes(box), orientation="horizontal",
        extend="max",
    )  # fmt: skip
    bar.ax.tick_params(labelsize=8, length=2, pad=1)
    _, top = image.get_clim()
    bar.set_ticks([0.0, float(f"{top / 4:.1g}"), float(f"{top:.2g}")])


def _shares(axes: Axes, weights: NDArray[np.float32], spans: Sequence[Span]) -> None:
    """A stacked bar a token: how its attention is shared among the spans."""
    left = np.zeros(len(weights))
    for number, span in enumerate(spans):
        share = weights[:, span.start : span.stop].sum(axis=1)
        label = f"{span.name} {share.mean():.0%}"
        axes.barh(
            np.arange(len(weights)), share, left=left, height=0.85, color=COLOURS[number % len(COLOURS)], label=label
        )
        left += share
    axes.set_ylim(len(weights) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.02, -32 / (len(weights) * CELL_PX)), fontsize=8, frameon=False,
        ncols=2, title="share of attention (mean)", title_fontsize=8, alignment="left", borderpad=0,
    )  # fmt: skip


def _shown(token: str) -> str:
    """A token's label: spaces and line ends visible, long ones cut."""
    text = token.replace("\n", "⏎").replace("\t", "→")
    text = "␣" * len(text) if text.strip() == "" else text.strip()
    return text if len(text) <= _TOKEN_LETTERS else f"{text[: _TOKEN_LETTERS - 1]}…"


def draw_occlusion(found: Occlusion, events: Sequence[Sequence[EventRow]] | None = None) -> bytes:
    """PNG: each recording's spectrogram, with its evidence over the same seconds below and known events above.

    Args:
        found: what :func:`~stetholm.model.explain.occlusion` gave.
        events: of each recording, rows ``start``, ``end``, ``label``; None: none are known.
    """
    known = list(events or [()] * len(found.recordings))
    row = _EVENTS_PX + IMAGE_PX + _BETWEEN + CURVE_PX + _FOOT
    height = _OCC_HEAD + row * len(found.recordings)
    figure = new_figure(WIDTH_PX, height)
    what = f"log-probability of the answer: {found.logp:.3f} nats a token; evidence: what it loses without the window"
    _title(figure, found.instruction, found.answer, what, WIDTH_PX, height)
    colours = event_colours(known)
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    _legend(figure, handles, "left", height)
    sides = [Patch(color=FOR, alpha=0.55, label="for the answer"), Patch(color=AGAINST, alpha=0.55, label="against it")]
    dot = Line2D([], [], color="#333333", marker="o", markersize=4, linestyle="", label="a window, at its middle")
    _legend(figure, [*sides, dot], "right", height)
    limit = max(1e-3, *(float(np.abs(line.evidence).max()) for line in found.recordings)) * 1.1
    for number, (line, marks) in enumerate(zip(found.recordings, known, strict=True)):
        top = height - _OCC_HEAD - number * row - _EVENTS_PX
        image = _panel(figure, top - IMAGE_PX, IMAGE_PX, height)
        draw_spectrogram(image, line.clip.log_mel, line.clip.seconds)
        label_axes(image, hz=True, seconds=False)
        draw_events(image, marks, colours, IMAGE_PX)
        if len(found.recordings) > 1:
            image.set_title(f"audio {number + 1}", loc="right", fontsize=9, pad=26)
        _curve(_panel(figure, top - IMAGE_PX - _BETWEEN - CURVE_PX, CURVE_PX, height), line, limit)
    return to_png(figure)


def _panel(figure: Figure, bottom: int, size: int, height: int) -> Axes:
    width = WIDTH_PX - _OCC_LEFT - _OCC_RIGHT
    return figure.add_axes((_OCC_LEFT / WIDTH_PX, bottom / height, width / WIDTH_PX, size / height))


def _legend(figure: Figure, handles: Sequence[Artist], side: Literal["left", "right"], height: int) -> None:
    """One line below the title: events at the left, evidence at the right."""
    if not handles:
        return
    legend = figure.legend(
        handles=handles, loc="center left" if side == "left" else "center right",
        bbox_to_anchor=(16 / WIDTH_PX if side == "left" else 1 - _OCC_RIGHT / WIDTH_PX, 1 - 88 / height),
        ncols=len(handles), frameon=False, fontsize=9, handlelength=1.4, columnspacing=1.6, borderpad=0,
        borderaxespad=0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _curve(axes: Axes, line: Timeline, limit: float) -> None:
    """A dot a window at its middle, and the mean of the windows that hold a frame as an area."""
    edges = np.linspace(0.0, line.clip.seconds, len(line.by_frame) + 1)
    for part, colour in ((np.maximum, FOR), (np.minimum, AGAINST)):
        axes.stairs(part(line.by_frame, 0.0), edges, fill=True, color=colour, alpha=0.55)
    axes.plot((line.starts + line.stops) / 2, line.evidence, "o", color="#333333", markersize=4)
    axes.axhline(0, color="#333333", linewidth=0.8)
    axes.set_xlim(0, CLIP_SECONDS)
    axes.set_ylim(-limit, limit)
    axes.set_xticks(range(int(CLIP_SECONDS) + 1))
    axes.set_xlabel("s", fontsize=9, labelpad=1)
    axes.set_ylabel("nats a token", fontsize=9)
    axes.tick_params(labelsize=9, length=3)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
