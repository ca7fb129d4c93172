import json
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import EfficientNetConfig

from stetholm.errors import UserError
from stetholm.model.encoders import ENCODERS, AudioEncoder, register
from stetholm.model.explain import Clip, Timeline, attention, occlusion
from stetholm.model.fresh import assemble, build_processor
from stetholm.model.language import load_language_model, load_tokenizer
from tests.model.tiny import tiny_encoder_config, tiny_settings

QUESTION = "Compare the lung sounds of these two."
ANSWER = "The second wheezes."


def logp(model: Any, processor: Any, mels: list[np.ndarray], answer: str = ANSWER) -> float:
    """Length-averaged, by the model's own method for training."""
    pair = processor.encode_pair(QUESTION, answer, len(mels))
    with torch.no_grad():
        sums, counts = model.response_logps(**processor.collate([{**pair, "features": np.stack(mels)}]))
    return float(sums / counts)


def test_evidence_is_what_the_answer_loses(ready: Any, clips: list[Clip]) -> None:
    """Two recordings, one of them short: each window against a plain forward pass."""
    model, processor = ready
    found = occlusion(model, processor, QUESTION, [clips[0], clips[2]], ANSWER)
    mels = [clips[0].log_mel, clips[2].log_mel]
    whole = logp(model, processor, mels)
    assert found.logp == pytest.approx(whole, abs=1e-5) and found.answer == ANSWER
    first, second = found.recordings
    assert len(first.evidence) == 13 and first.stops[-1] == 7.0
    np.testing.assert_allclose(second.starts, [0, 0.5, 1.0, 1.3], atol=1e-6)
    for line, windows in ((first, (0, 7, 12)), (second, (0, 3))):
        for window in windows:
            occluded = line.clip.without(line.starts[window], line.stops[window])
            changed = [occluded, mels[1]] if line is first else [mels[0], occluded]
            expected = whole - logp(model, processor, changed)
            assert line.evidence[window] == pytest.approx(expected, abs=2e-5) and abs(expected) > 1e-4
    np.testing.assert_allclose(first.token_evidence.mean(axis=1), first.evidence, atol=1e-7)
    assert first.token_evidence.shape == (13, len(found.tokens)) and found.tokens[-1] == "</s>"
    json.dumps(found.to_dict())


def test_batches_and_repetition_do_not_matter(ready: Any, clips: list[Clip]) -> None:
    found = occlusion(*ready, QUESTION, clips[:2], ANSWER)
    single = occlusion(*ready, QUESTION, clips[:2], ANSWER, batch_size=1)
    for one, other in zip(found.recordings, single.recordings, strict=True):
        np.testing.assert_allclose(one.evidence, other.evidence, atol=2e-5)
    same = occlusion(*ready, QUESTION, clips[:2], ANSWER)
    np.testing.assert_array_equal(same.recordings[0].evidence, found.recordings[0].evidence)


def test_silent_frames_give_nothing(ready: Any, clips: list[Clip]) -> None:
    quiet = clips[0].log_mel.copy()
    quiet[:, 62:125] = 0  # 1.984 to 4 s
    line = occlusion(*ready, QUESTION, [Clip(quiet, 7.0)], ANSWER).recordings[0]
    silent = (line.starts >= 2.0) & (line.stops <= 4.0)
    assert silent.sum() == 3 and (line.evidence[silent] == 0).all() and line.evidence[~silent].all()


def test_padding_is_not_counted(ready: Any, clips: list[Clip]) -> None:
    line = occlusion(*ready, QUESTION, clips[2], ANSWER).recordings[0]
    assert line.stops.max() == pytest.approx(2.3) and line.by_second.shape == (3,)
    assert line.by_frame.shape == (72,) and line.inside([(2.3, 7.0)]) == (0.0, 0.0)
    tiny = occlusion(*ready, QUESTION, Clip(clips[2].log_mel, 0.02), ANSWER).recordings[0]
    assert tiny.evidence.shape == (1,) and tiny.by_second.shape == (1,)


def test_only_what_changes_is_encoded_again(ready: Any, clips: list[Clip]) -> None:
    model, processor = ready
    encoded: list[int] = []
    handle = model.model.audio_tower.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    told: list[tuple[int, int]] = []
    occlusion(model, processor, QUESTION, clips[:2], ANSWER, batch_size=8, on_progress=lambda *how: told.append(how))
    handle.remove()
    assert encoded == [2, 7, 8, 8, 3]
    assert told == [(7, 26), (15, 26), (23, 26), (26, 26)]


def test_the_models_own_answer(ready: Any, clips: list[Clip]) -> None:
    """As text it may come to other tokens, as ids it may not."""
    seen = attention(*ready, QUESTION, clips[:1], max_new_tokens=6)
    found = occlusion(*ready, QUESTION, clips[:1], max_new_tokens=6)
    assert found.answer_ids == seen.answer_ids and found.answer == seen.answer
    np.testing.assert_allclose(found.logps, seen.logps, atol=1e-5)
    again = occlusion(*ready, QUESTION, clips[:1], seen.answer_ids)
    np.testing.assert_array_equal(again.recordings[0].evidence, found.recordings[0].evidence)


class FewSeconds(AudioEncoder):
    """Hears the frames centred in [3, 4) s and nothing else."""

    config_class: ClassVar[Any] = EfficientNetConfig

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.width = 8
        self.mix = nn.Linear(64, 8)

    @classmethod
    def default_config(cls) -> Any:
        return tiny_encoder_config()

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        return self.mix(input_features[:, :, 94:125].mean(dim=2))


@pytest.fixture(scope="module")
def narrow(base: Any) -> Iterator[Any]:
    """A model with such an encoder."""
    register("few-seconds")(FewSeconds)
    settings = tiny_settings(base, audio_encoder="few-seconds")
    tokenizer = load_tokenizer(str(base))
    model = assemble(load_language_model(str(base), torch.float32), tokenizer, settings)
    with torch.no_grad():
        model.model.projector.model[-1].weight.mul_(3)
    yield model, build_processor(tokenizer, model.config)
    del ENCODERS["few-seconds"]


def test_evidence_lies_where_the_model_listens(narrow: Any, clips: list[Clip]) -> None:
    line = occlusion(*narrow, QUESTION, clips[:1], ANSWER).recordings[0]
    heard = (line.starts < 4.0) & (line.stops > 3.0)
    assert heard.sum() == 3 and np.abs(line.evidence[~heard]).max() < 5e-6
    assert line.starts[np.abs(line.evidence).argmax()] == 3.0 and np.abs(line.evidence[heard]).min() > 5e-5
    seconds = np.abs(line.by_second)
    assert seconds.argmax() == 3 and (seconds[[0, 1, 5, 6]] < 5e-6).all()
    fine = occlusion(*narrow, QUESTION, clips[:1], ANSWER, window_seconds=0.25, hop_seconds=0.25).recordings[0]
    outside = (fine.stops <= 3.0) | (fine.starts >= 4.0)
    assert np.abs(fine.evidence[outside]).max() < 5e-6 < 1e-5 < np.abs(fine.evidence[~outside]).min()


def test_of_two_recordings_the_one_that_counts(narrow: Any, clips: list[Clip]) -> None:
    """The second recording is silent where the model listens, so nothing of it can matter."""
    deaf = clips[1].log_mel.copy()
    deaf[:, 94:125] = 0
    first, second = occlusion(*narrow, QUESTION, [clips[0], Clip(deaf, 7.0)], ANSWER).recordings
    assert np.abs(second.evidence).max() < 5e-6 < 1e-4 < np.abs(first.evidence).max()


@given(
    evidence=st.lists(st.floats(-1, 1, width=32), min_size=13, max_size=13),
    spans=st.lists(st.tuples(st.floats(0, 7), st.floats(0, 7)).map(sorted).map(tuple), max_size=4),
)
def test_shares_of_evidence_and_time(evidence: list[float], spans: list[tuple[float, float]]) -> None:
    starts = np.arange(13) * 0.5
    line = Timeline(
        Clip(np.ones((64, 218), np.float32), 7.0), starts, starts + 1, np.array(evidence, np.float32)[:, None]
    )
    inside, time = line.inside(spans)
    assert 0 <= time <= 1 and (inside is None) == (line.by_frame.max() <= 0)
    if inside is not None:
        assert 0 <= inside <= 1 + 1e-6 and line.inside([(0.0, 7.0)]) == (pytest.approx(1), 1.0)
        rest = line.inside(complement(spans))[0]
        assert rest is not None and inside + rest == pytest.approx(1, abs=1e-4)


def complement(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    edges, found = 0.0, []
    for start, end in sorted(spans):
        found.append((edges, start))
        edges = max(edges, end)
    return [(start, end) for start, end in [*found, (edges, 8.0)] if end > start]


def test_what_cannot_be_occluded_is_refused(ready: Any, clips: list[Clip]) -> None:
    with pytest.raises(UserError, match="needs a recording"):
        occlusion(*ready, QUESTION, [], ANSWER)
    with pytest.raises(ValueError, match="give a hop above 0"):
        occlusion(*ready, QUESTION, clips, ANSWER, window_seconds=0.5, hop_seconds=1.0)
