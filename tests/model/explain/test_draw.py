import io
import warnings
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from stetholm.model.explain import Clip, attention, occlusion
from stetholm.model.explain import draw as drawing
from stetholm.model.explain.draw import draw_attention, draw_occlusion

QUESTION = "What does the recording show?"


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def of_colour(image: np.ndarray, colour: str, within: int = 12) -> np.ndarray:
    wanted = np.rint(np.array(to_rgb(colour)) * 255)
    return (np.abs(image - wanted) <= within).all(axis=2)


@pytest.fixture(scope="module")
def seen(ready: Any, clips: list[Clip]) -> Any:
    return attention(*ready, QUESTION, clips[:2], answer="The second one wheezes, the first one does not.")


def test_a_map_has_a_cell_a_token_and_borders_between_the_parts(seen: Any) -> None:
    image = pixels(draw_attention(seen))
    rows, columns = seen.weights.shape
    cell, left = drawing.CELL_PX, drawing._LEFT
    assert image.shape[0] == drawing._TOP + rows * cell + drawing._BOTTOM
    middle = of_colour(image, "#d62728", 40)[drawing._TOP + 1 : drawing._TOP + rows * cell - 1]
    lines = np.flatnonzero(middle.mean(axis=0) > 0.9)
    borders = [left + span.start * cell for span in seen.spans[1:]]
    assert all(np.abs(lines - border).min() <= 2 for border in borders)
    assert all(min(abs(line - border) for border in borders) <= 2 for line in lines)
    assert columns * cell + left < image.shape[1]
    assert draw_attention(seen) == draw_attention(seen) != draw_attention(seen, layer=0)


def test_strange_texts_are_drawn_as_they_are(ready: Any, clips: list[Clip]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = attention(*ready, "costs $5 or $\\frac{$ 呼吸音\n\t", clips[:1], answer="$x_$ 呼 " + "w" * 40)
        assert pixels(draw_attention(found)).size
        lost = occlusion(*ready, "costs $5 or $\\frac{$ 呼吸音", clips[:1], "$x_$")
        events = [{"start": 1.0, "end": 2.0, "label": "$呼_$"}]
        assert pixels(draw_occlusion(lost, [events])).size


def test_occlusion_lies_under_the_seconds_it_is_about(ready: Any, clips: list[Clip]) -> None:
    found = occlusion(*ready, QUESTION, [clips[0], clips[2]], "Wheezes.")
    events = [{"start": 2.0, "end": 4.0, "label": "wheeze"}]
    with_events, without = pixels(draw_occlusion(found, [events, []])), pixels(draw_occlusion(found))
    assert with_events.shape == without.shape and without.shape[1] == drawing.WIDTH_PX
    bar = np.flatnonzero((with_events != without).any(axis=2)[drawing._OCC_HEAD :].any(axis=0))
    second = (drawing.WIDTH_PX - drawing._OCC_LEFT - drawing._OCC_RIGHT) / 7
    assert bar.min() == pytest.approx(drawing._OCC_LEFT + 2 * second, abs=2)
    assert bar.max() == pytest.approx(drawing._OCC_LEFT + 4 * second, abs=2)
