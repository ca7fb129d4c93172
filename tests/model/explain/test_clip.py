from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from stetholm.audio.decode import AudioError
from stetholm.audio.features import log_mel
from stetholm.model.explain import Clip
from stetholm.model.explain.clip import check_windows, frames_between, windows


@given(seconds=st.floats(0.05, 7), length=st.floats(0.064, 7), part=st.floats(0.1, 1))
def test_windows_cover_the_recording_and_nothing_else(seconds: float, length: float, part: float) -> None:
    found = windows(seconds, length, length * part)
    assert found[0][0] == 0 and found[-1][1] == pytest.approx(seconds)
    assert {round(stop - start, 6) for start, stop in found} == {round(min(length, seconds), 6)}
    assert all(start < later <= stop for (start, stop), (later, _) in pairwise(found))
    clip = Clip(np.zeros((64, 218), np.float32), seconds)
    held = np.zeros(218, int)
    for start, stop in found:
        held[frames_between(start, stop)] += 1
    assert held[: clip.frames].all() and not held[clip.frames :].any()


def test_the_usual_windows() -> None:
    found = windows(7.0, 1.0, 0.5)
    assert len(found) == 13 and found[1] == (0.5, 1.5) and found[-1] == (6.0, 7.0)
    assert windows(2.3, 1.0, 0.5) == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0), (pytest.approx(1.3), 2.3)]
    assert windows(0.4, 1.0, 0.5) == [(0.0, 0.4)]


@pytest.mark.parametrize(("length", "hop"), [(1.0, 1.5), (1.0, 0.0), (0.03, 0.01), (float("nan"), 0.5)])
def test_windows_with_gaps_or_nothing_in_them_are_refused(length: float, hop: float) -> None:
    with pytest.raises(ValueError, match="give a hop above 0"):
        check_windows(length, hop)


def test_occluded_frames_are_those_centred_in_the_window() -> None:
    clip = Clip(np.ones((64, 218), np.float32), 7.0)
    silent = np.flatnonzero((clip.without(1.0, 2.0) == 0).all(axis=0))
    np.testing.assert_array_equal(silent * 0.032 >= 1.0, True)
    np.testing.assert_array_equal(silent * 0.032 < 2.0, True)
    assert len(silent) == 31 and clip.log_mel.all(), "the clip itself stays"
    assert frames_between(0.096, 0.128) == slice(3, 4)


def test_the_floor_is_how_the_front_end_shows_silence(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 4000 * 3).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 4000)
    clip = Clip.of(tmp_path / "a.wav")
    assert clip.seconds == pytest.approx(3.0) and clip.frames == 94
    assert (clip.log_mel[:, 96:] == 0).all(), "padding"
    quiet = np.pad(np.random.default_rng(0).uniform(-0.5, 0.5, 16_000 * 7).astype(np.float32), 0)
    quiet[16_000 * 2 : 16_000 * 4] = 0
    np.testing.assert_array_equal(log_mel(quiet)[:, 64:124], Clip.of(quiet, 16_000).without(2.0, 4.0)[:, 64:124])


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(AudioError, match="finite log-mel"):
        Clip(np.zeros((64, 200), np.float32), 7.0)
    with pytest.raises(AudioError, match="finite log-mel"):
        Clip(np.full((64, 218), np.nan, np.float32), 7.0)
    with pytest.raises(AudioError, match="some seconds"):
        Clip(np.zeros((64, 218), np.float32), 0.0)
    with pytest.raises(AudioError, match="no recording at"):
        Clip.of("/nowhere.wav")
