"""A picture of a corpus: some two dozen spectrograms, as a model gets them, with their labels and events."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from stetholm.audio.features import FMAX, FMIN, N_FRAMES, N_MELS, hz_to_mel
from stetholm.corpus.derived import CLIP_SECONDS
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS
from stetholm.corpus.showcase import choose, read_log_mels
from stetholm.corpus.survey import Known, Survey
from stetholm.corpus.suspicions import shorten
from stetholm.storage import Storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELLS, COLUMNS = 24, 4
WIDTH_PX, ROW_PX, HEAD_PX, FOOT_PX = 1840, 250, 136, 44
FRAME_SECONDS = 0.032
TICKS_HZ = (100, 500, 1000, 2000, 4000, 8000)
LANES, LANE_PX = 3, 7
"""Most rows of event bars above a spectrogram, and how high they are."""
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255",
    "#44aa99", "#999933", "#661100", "#aa4499", "#117733", "#f0c800", "#6699cc", "#000000",
)  # fmt: skip
"""Okabe and Ito's and Paul Tol's: the first ones, of the most frequent kinds, are told apart by all readers."""
OTHER = "#999999"
_DPI = 100
_TITLE_LETTERS, _LABEL_LETTERS, _LEGEND_COLUMNS = 60, 62, 8
_IMAGE_PX, _TITLE_PX = 158, 72
_COLOUR_MAP = "magma"


@dataclass(frozen=True)
class Cell:
    """One spectrogram of the sheet."""

    known: Known
    split: str
    log_mel: NDArray[np.float32]


def draw_sheet(survey: Survey, storage: Storage, seed: int) -> bytes:
    """The sheet as PNG; the same corpus and seed give the same picture.

    Raises:
        CorpusError: a shard is missing or damaged.
        AudioError: a cached spectrogram is of another version of the platform.
    """
    chosen = choose(survey, CELLS, seed)
    images = read_log_mels(storage, survey.uri, [survey.places[known.recording_id] for _, known in chosen])
    cells = [Cell(known, split, image) for (split, known), image in zip(chosen, images, strict=True)]
    return render(cells, survey.uri, len(survey.recordings))


def render(cells: Sequence[Cell], corpus_uri: str, recordings: int) -> bytes:
    """Draw ``cells`` as PNG, ``WIDTH_PX`` wide, ``COLUMNS`` in a row."""
    rows = max(1, math.ceil(len(cells) / COLUMNS))
    height = HEAD_PX + rows * ROW_PX + FOOT_PX
    figure = Figure(figsize=(WIDTH_PX / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    colours = _event_colours(cells)
    _head(figure, colours, f"{corpus_uri}: {len(cells)} of {recordings:,} recordings", height)
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        lowest = number + COLUMNS >= len(cells)
        _draw(figure, cell, colours, _box(row, column, height), left=column == 0, lowest=lowest)
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a script that the font lacks: a box is drawn
        canvas.print_png(png, metadata={"Software": None})
    return png.getvalue()


def mel_row(hz: float) -> float:
    """Row of a log-mel on which a frequency falls, with fractions; row 0 is the centre of the lowest band."""
    low, high = hz_to_mel(FMIN), hz_to_mel(FMAX)
    return (hz_to_mel(hz) - low) / (high - low) * (N_MELS + 1) - 1


def _event_colours(cells: Iterable[Cell]) -> dict[str, str]:
    """A colour for each label of an event, the most frequent ones first; the rest share one."""
    counts: dict[str, int] = {}
    for cell in cells:
        for event in _heard(cell):
            counts[event["label"]] = counts.get(event["label"], 0) + 1
    labels = sorted(counts, key=lambda label: (-counts[label], label))
    return {label: COLOURS[number] if number < len(COLOURS) else OTHER for number, label in enumerate(labels)}


def _heard(cell: Cell) -> Iterator[Mapping[str, Any]]:
    """Events in the seconds that are shown."""
    return (event for event in cell.known.events if event["start"] < CLIP_SECONDS)


def _head(figure: Figure, colours: Mapping[str, str], title: str, height: int) -> None:
    """Title, what is shown, the legend of the events, and the scale of the colours."""
    about = (
        f"Log-mel as a model gets it: the first {CLIP_SECONDS:g} s, 50-8000 Hz, each scaled to its own loudest 80 dB"
    )
    figure.text(0.012, 1 - 24 / height, title, fontsize=14, weight="bold", va="center", parse_math=False)
    figure.text(0.012, 1 - 50 / height, about, fontsize=10, color="#444444", va="center")
    named = [label for label, colour in colours.items() if colour != OTHER]
    handles = [Patch(color=colours[label], label=shorten(label, 30)) for label in named]
    if len(named) < len(colours):
        handles.append(Patch(color=OTHER, label=f"{len(colours) - len(named)} other kinds"))
    if handles:
        legend = figure.legend(
            handles=handles, loc="center left", bbox_to_anchor=(0.009, 1 - 90 / height),
            ncols=min(_LEGEND_COLUMNS, len(handles)), frameon=False, fontsize=10, handlelength=1.4,
            columnspacing=1.6, borderpad=0,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
    scale = figure.add_axes((0.86, 1 - 50 / height, 0.12, 12 / height))
    bar = figure.colorbar(ScalarMappable(cmap=_COLOUR_MAP), cax=scale, orientation="horizontal", ticks=[0, 1])
    bar.ax.set_xticklabels(["quiet", "loud"], fontsize=9)
    bar.outline.set_visible(False)


def _box(row: int, column: int, height: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a spectrogram, in fractions of the figure."""
    left, gap, right = 62, 26, 18
    width = (WIDTH_PX - left - right - gap * (COLUMNS - 1)) / COLUMNS
    bottom = height - HEAD_PX - row * ROW_PX - _TITLE_PX - _IMAGE_PX
    return (left + column * (width + gap)) / WIDTH_PX, bottom / height, width / WIDTH_PX, _IMAGE_PX / height


def _draw(
    figure: Figure,
    cell: Cell,
    colours: Mapping[str, str],
    box: tuple[float, float, float, float],
    *,
    left: bool,
    lowest: bool,
) -> None:
    axes = figure.add_axes(box)
    half = FRAME_SECONDS / 2
    extent = (-half, N_FRAMES * FRAME_SECONDS - half, -0.5, N_MELS - 0.5)
    axes.imshow(cell.log_mel, origin="lower", aspect="auto", cmap=_COLOUR_MAP, vmin=0, vmax=1, extent=extent)
    axes.set_xlim(0, CLIP_SECONDS)
    axes.set_ylim(-0.5, N_MELS - 0.5)
    axes.set_facecolor("#eeeeee")
    _padding(axes, cell.known.seconds)
    _ticks(axes, left=left, lowest=lowest)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _titles(axes, cell)
    _bars(axes, cell, colours)


def _padding(axes: Axes, seconds: float | None) -> None:
    """What follows the end of a short recording is no sound."""
    if seconds is not None and seconds < CLIP_SECONDS - FRAME_SECONDS:
        axes.axvspan(seconds, CLIP_SECONDS, facecolor="#eeeeee", edgecolor="#bbbbbb", hatch="//", linewidth=0)


def _ticks(axes: Axes, *, left: bool, lowest: bool) -> None:
    axes.set_xticks(range(0, int(CLIP_SECONDS) + 1), [f"{s}" for s in range(int(CLIP_SECONDS) + 1)] if lowest else [])
    axes.set_yticks([mel_row(hz) for hz in TICKS_HZ], [f"{hz}" for hz in TICKS_HZ] if left else [])
    axes.tick_params(labelsize=9, length=3, color="#888888")
    if lowest:
        axes.set_xlabel("s", fontsize=9, labelpad=1)
    if left:
        axes.set_ylabel("Hz", fontsize=9, labelpad=1)


def _titles(axes: Axes, cell: Cell) -> None:
    """Above the bars: dataset, split and file, and in a second line the labels."""
    known, labels = cell.known, cell.known.labels or {}
    first = f"{known.dataset} · {cell.split}"
    said = [labels[name] for name in (STATUS, FINDING, DIAGNOSIS) if name in labels] or list(labels.values())[:3]
    later = {event["label"] for event in known.events} - {event["label"] for event in _heard(cell)}
    second = ", ".join(dict.fromkeys(said)) or "no labels"
    second += f" (after {CLIP_SECONDS:g} s: {', '.join(sorted(later))})" if later else ""
    name = _tail(known.name, _TITLE_LETTERS - len(first))
    _write(axes, shorten(first, 44), 33, size=10, weight="bold")
    _write(axes, name, 33.5, size=8, colour="#666666", right=True)
    _write(axes, shorten(second, _LABEL_LETTERS), 19, size=9.5)


def _write(
    axes: Axes, text: str, above: float, *, size: float, weight: str = "normal", colour: str = "black",
    right: bool = False,
) -> None:  # fmt: skip
    """One line of text, ``above`` points over the spectrogram, from its left edge or to its right one."""
    axes.annotate(
        text, (float(right), 1.0), (0.0, above), xycoords="axes fraction", textcoords="offset points", size=size,
        weight=weight, color=colour, va="bottom", ha="right" if right else "left", annotation_clip=False,
        parse_math=False,
    )  # fmt: skip


def _bars(axes: Axes, cell: Cell, colours: Mapping[str, str]) -> None:
    """Events as bars in the strip above the spectrogram; kinds that overlap in time lie in lanes of their own."""
    lanes = _lanes(cell)
    if not lanes:
        return
    depth = LANE_PX / _IMAGE_PX
    for event in _heard(cell):
        start, end = max(0.0, event["start"]), min(event["end"], CLIP_SECONDS)
        bottom = 1.015 + lanes[event["label"]] * depth
        # A click lasts milliseconds: every bar is at least two pixels wide.
        axes.axvspan(
            start, max(end, start + 0.035), bottom, bottom + 0.85 * depth, clip_on=False, linewidth=0,
            facecolor=colours[event["label"]],
        )  # fmt: skip


def _lanes(cell: Cell) -> dict[str, int]:
    """The lane of each kind of event: the lowest in which nothing of another kind overlaps it, at most ``LANES``."""
    by_label: dict[str, list[tuple[float, float]]] = {}
    for event in _heard(cell):
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


def _tail(text: str, length: int) -> str:
    """The end of a path tells more than its beginning."""
    return text if len(text) <= length else f"…{text[1 - length :]}" if length > 1 else ""
