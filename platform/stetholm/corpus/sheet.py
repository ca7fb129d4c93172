"""A picture of a corpus: some two dozen spectrograms, as a model gets them, with their labels and events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from stetholm.audio.features import CLIP_SECONDS
from stetholm.audio.picture import (
    COLOUR_MAP,
    OTHER,
    draw_events,
    draw_spectrogram,
    event_colours,
    heard,
    label_axes,
    new_figure,
    to_png,
)
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS
from stetholm.corpus.showcase import choose, read_log_mels
from stetholm.corpus.survey import Known, Survey
from stetholm.corpus.suspicions import shorten
from stetholm.storage import Storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELLS, COLUMNS = 24, 4
WIDTH_PX, ROW_PX, HEAD_PX, FOOT_PX = 1840, 250, 136, 44
_TITLE_LETTERS, _LABEL_LETTERS, _LEGEND_COLUMNS = 60, 62, 8
_IMAGE_PX, _TITLE_PX = 158, 72


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
    figure = new_figure(WIDTH_PX, height)
    colours = event_colours(cell.known.events for cell in cells)
    _head(figure, colours, f"{corpus_uri}: {len(cells)} of {recordings:,} recordings", height)
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        lowest = number + COLUMNS >= len(cells)
        _draw(figure, cell, colours, _box(row, column, height), left=column == 0, lowest=lowest)
    return to_png(figure)


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
    bar = figure.colorbar(ScalarMappable(cmap=COLOUR_MAP), cax=scale, orientation="horizontal", ticks=[0, 1])
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
    draw_spectrogram(axes, cell.log_mel, cell.known.seconds)
    label_axes(axes, hz=left, seconds=lowest)
    _titles(axes, cell)
    draw_events(axes, cell.known.events, colours, _IMAGE_PX)


def _titles(axes: Axes, cell: Cell) -> None:
    """Above the bars: dataset, split and file, and in a second line the labels."""
    known, labels = cell.known, cell.known.labels or {}
    first = f"{known.dataset} · {cell.split}"
    said = [labels[name] for name in (STATUS, FINDING, DIAGNOSIS) if name in labels] or list(labels.values())[:3]
    later = {event["label"] for event in known.events} - {event["label"] for event in heard(known.events)}
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


def _tail(text: str, length: int) -> str:
    """The end of a path tells more than its beginning."""
    return text if len(text) <= length else f"…{text[1 - length :]}" if length > 1 else ""
