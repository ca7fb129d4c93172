"""The picture of the curves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from stetholm.training.curves import PICTURE, draw_checkpoint, draw_curves, smooth
from stetholm.training.history import History


def record(step: int, **more: float) -> dict[str, float]:
    shares = {"data_wait": 0.02, "padding": 0.1}
    return {"step": step, "time": 1.0, "loss": 5 / step, "learning_rate": 1e-3, "tokens_per_s": 900.0, **shares, **more}


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(1)],
        [record(step, grad_norm=1.0) for step in range(1, 60)],
        [record(step, dpo=0.6, anchor=0.1) for step in range(1, 9)] + [{"step": 5, "time": 1.0, "val_loss": 0.9}],
    ],
)
def test_it_is_drawn_whatever_is_known(records, tmp_path):
    draw_curves(History(records), "run/sft", tmp_path / "curves.png")
    picture = imread(tmp_path / "curves.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 800
    assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 10  # something is drawn


def test_it_is_drawn_beside_the_history_of_a_checkpoint(tmp_path):
    draw_checkpoint(tmp_path, "run/sft")
    assert not list(tmp_path.iterdir())
    History([record(1), record(2)]).write(tmp_path, step=2)
    draw_checkpoint(tmp_path, "run/sft")
    assert imread(tmp_path / PICTURE).shape[1] > 800


def test_evaluations_and_terms_are_seen(tmp_path):
    """They change the picture."""
    pictures = []
    plain = [record(step) for step in range(1, 9)]
    evaluated = [*plain, {"step": 4, "time": 1.0, "val_loss": 3.0}]
    for name, records in (("a", plain), ("b", evaluated), ("c", [one | {"caption": 1.0} for one in plain])):
        draw_curves(History(records), "run/sft", tmp_path / f"{name}.png")
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert len(set(pictures)) == 3


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_smoothing_stays_within_what_it_smooths(values):
    smoothed = smooth(np.array(values))
    assert len(smoothed) == len(values)
    assert min(values) - 1e-6 <= smoothed.min() and smoothed.max() <= max(values) + 1e-6


def test_smoothing_keeps_a_constant_and_evens_out_noise():
    assert smooth(np.full(50, 3.0)).tolist() == pytest.approx([3.0] * 50)
    noise = np.random.default_rng(0).normal(size=400)
    assert smooth(noise).std() < noise.std() / 2
