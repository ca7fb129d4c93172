"""What is measured and heard of a recording."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stetholm.audio.decode import AudioError
from stetholm.serving.analysis import QUESTIONS, TASKS, question_for
from stetholm.serving.listening import listen, stack
from stetholm.serving.quality import measure
from stetholm.settings import AudioSettings
from tests.serving.sounds import wav


def test_a_tone_is_measured():
    heard = listen(wav(10.0, level=0.5), AudioSettings())
    quality = heard.quality
    assert heard.features.shape == (64, 218)
    assert (quality.duration_seconds, quality.analysed_seconds, quality.sampling_rate) == (10.0, 7.0, 8000)
    assert quality.level_dbfs == pytest.approx(-9.0, abs=0.1)
    assert (quality.clipping_fraction, quality.silence_fraction) == (0.0, 0.0)


def test_only_the_first_seven_seconds_are_heard():
    seven, ten = (listen(wav(seconds), AudioSettings()).features for seconds in (7.6, 10.0))
    assert np.array_equal(seven, ten)


def test_clipping_and_silence_are_found():
    samples = np.concatenate([np.ones(4000), np.zeros(4000)]).astype(np.float32)
    quality = measure(samples, 8000)
    assert (quality.clipping_fraction, quality.silence_fraction) == (0.5, 0.5)


@given(arrays.arrays(np.float32, st.integers(0, 500), elements=st.floats(-1, 1, width=32)))
def test_fractions_are_fractions(samples):
    quality = measure(samples, 1000)
    assert 0 <= quality.clipping_fraction <= 1 and 0 <= quality.silence_fraction <= 1
    assert -120 <= quality.level_dbfs <= 0


def test_a_long_recording_is_measured_in_blocks_as_a_whole():
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, 200_000).astype(np.float32)  # three blocks at 4 kHz
    samples[60_000:120_000] = 0.0
    quality = measure(samples, 4000)
    assert quality.level_dbfs == round(10 * float(np.log10(np.mean(np.square(samples, dtype=np.float64)))), 1)
    assert quality.silence_fraction == 0.3 and quality.duration_seconds == 50.0


def test_limits_and_non_audio():
    with pytest.raises(AudioError, match="longer"):
        listen(wav(3.0), AudioSettings(max_seconds=1.0))
    with pytest.raises(AudioError):
        listen(b"GIF89a" * 100, AudioSettings())
    assert stack([]).shape == (0, 64, 218)


def test_every_task_has_a_question():
    assert set(QUESTIONS) == set(TASKS)
    assert question_for("Classification", "heart") == "Is this heart sound normal or abnormal?"
    assert all("{" not in question_for(task, sound) for task in TASKS for sound in (None, "heart", "lung"))
