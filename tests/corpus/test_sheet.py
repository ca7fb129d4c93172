"""The sheet: which recordings are on it, where frequencies and events lie, and a picture that opens."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stetholm.audio import picture as pictures
from stetholm.audio.decode import Sound, encode_flac
from stetholm.audio.features import log_mel
from stetholm.audio.picture import event_lanes, mel_row
from stetholm.corpus import sheet
from stetholm.corpus.sheet import Cell, draw_sheet, render
from stetholm.corpus.showcase import choose, read_log_mels
from stetholm.corpus.survey import Known, Survey, read_survey
from stetholm.storage import Storage
from tests.corpus.inspected import entry, make, row

SEED = 3


@pytest.fixture(scope="module")
def survey(storage: Storage) -> Survey:
    """Forty recordings of two datasets, most of one label; the rare ones must be seen all the same."""
    names = [f"r{number:02d}" for number in range(40)]
    datasets = {name: "hearts" if name < "r04" else "lungs" for name in names}
    labels = {name: "wheezes" if name in ("r10", "r11") else "none" for name in names}
    splits = {split: [] for split in ("train", "test")}
    for number, name in enumerate(names):
        splits["test" if number % 8 == 1 else "train"].append(row(name, number, dataset=datasets[name]))
    splits["test"].append(row(["r39", "r01"], 99))
    catalogue = [entry(name, {"finding": labels[name]}, dataset=datasets[name]) for name in names]
    return read_survey(storage, make(storage, "sheet", splits, catalogue))


def picture(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def cell(**known: object) -> Cell:
    base = Known("id", "lungs", "p", 4000, 8.0, "file.wav", {"status": "abnormal", "finding": "crackles"})
    return Cell(replace(base, **known), "train", np.zeros((64, 218), np.float32))  # type: ignore[arg-type]


def test_every_dataset_label_and_split_is_on_it(survey: Survey) -> None:
    chosen = choose(survey, 12, SEED)
    ids = [known.recording_id for _, known in chosen]
    assert len(chosen) == len(set(ids)) == 12
    assert {"r00", "r01", "r02", "r03", "r10", "r11"} <= set(ids)  # few of them: all are shown
    assert {split for split, known in chosen if known.dataset == "lungs"} == {"train", "test"}
    assert [known.dataset for _, known in chosen] == sorted(known.dataset for _, known in chosen)
    assert chosen == choose(survey, 12, SEED) != choose(survey, 12, SEED + 1)
    assert len(choose(survey, 100, SEED)) == 40


def test_spectrograms_are_those_of_the_recordings(storage: Storage) -> None:
    loud = np.sin(np.arange(16_000) * 0.3).astype(np.float32)
    sounds = [encode_flac(Sound(loud * level, 16_000, 16)) for level in (0.2, 0.9)]
    rows = [row(f"x{number}", number) for number in range(5)]
    rows += [{**row(["x0", "y"], 9), "audio": sounds}]
    found = read_survey(storage, make(storage, "mels", {"train": rows}))
    first, last = read_log_mels(storage, found.uri, [found.places["y"], found.places["x4"]])
    np.testing.assert_allclose(first, log_mel(loud * 0.9), atol=2e-3)  # 16-bit samples
    assert last.shape == (64, 218) and not np.allclose(first, last, atol=0.1)


@pytest.mark.parametrize("hz", [200.0, 500.0, 1000.0, 2500.0, 6000.0])
def test_frequencies_lie_where_the_front_end_puts_them(hz: float) -> None:
    tone = np.sin(2 * np.pi * hz * np.arange(7 * 16_000) / 16_000).astype(np.float32)
    loudest = int(log_mel(tone).mean(axis=1).argmax())
    assert abs(loudest - mel_row(hz)) <= 0.75


def test_the_picture_has_the_expected_size(storage: Storage, survey: Survey) -> None:
    png = draw_sheet(survey, storage, SEED)
    image = picture(png)
    assert image.format == "PNG" and image.size == (sheet.WIDTH_PX, sheet.HEAD_PX + 6 * sheet.ROW_PX + sheet.FOOT_PX)
    assert 1600 <= image.width <= 2000
    assert np.asarray(image.convert("L")).mean() > 100  # a light background
    assert draw_sheet(survey, storage, SEED) == png
    assert picture(render([cell()], "s3://b/c", 1)).height == sheet.HEAD_PX + sheet.ROW_PX + sheet.FOOT_PX


def test_events_are_bars_in_their_colours() -> None:
    events = ({"start": 1.0, "end": 3.0, "label": "wheeze"}, {"start": 9.0, "end": 10.0, "label": "never seen"})
    with_events = np.asarray(picture(render([cell(events=events)], "s3://b/c", 1)).convert("RGB"))
    without = np.asarray(picture(render([cell()], "s3://b/c", 1)).convert("RGB"))
    blue = tuple(int(pictures.COLOURS[0][place : place + 2], 16) for place in (1, 3, 5))
    hits = (with_events == blue).all(axis=-1)
    assert not (without == blue).all(axis=-1).any()
    bar = hits[sheet.HEAD_PX :]
    rows, columns = np.nonzero(bar)
    width = sheet._box(0, 0, 1000)[2] * sheet.WIDTH_PX
    assert columns.max() - columns.min() == pytest.approx(width * 2 / 7, abs=3)
    assert rows.max() - rows.min() < pictures.LANE_PX
    assert hits[: sheet.HEAD_PX].any()  # the legend


def test_kinds_that_overlap_have_lanes_of_their_own() -> None:
    events = (
        {"start": 0.0, "end": 2.0, "label": "inspiration"},
        {"start": 2.0, "end": 4.0, "label": "expiration"},
        {"start": 1.0, "end": 1.5, "label": "crackle"},
    )
    assert event_lanes(events) == {"inspiration": 0, "expiration": 0, "crackle": 1}


def test_strange_names_are_drawn_as_they_are() -> None:
    strange = {"finding": "costs $5 or $\\frac{$", "other": "呼吸音"}
    many = tuple({"start": 0.1 * n, "end": 0.1 * n, "label": f"$kind_{n} 呼"} for n in range(20))
    cells = [
        cell(labels=strange, events=many, seconds=0.0, filename="/".join("呼$" * 99)),
        cell(labels=None, seconds=None),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture(render(cells, "s3://b/$c_$", 2)).width == sheet.WIDTH_PX


def test_padding_after_a_short_recording_is_marked() -> None:
    short, full = (np.asarray(picture(render([cell(seconds=s)], "s3://b/c", 1)).convert("L")) for s in (2.0, 8.0))
    assert short[sheet.HEAD_PX :].mean() > full[sheet.HEAD_PX :].mean() + 5
