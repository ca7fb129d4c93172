import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor

from stetholm.audio.features import log_mel
from stetholm.errors import UserError
from stetholm.model import StethoLMProcessor
from stetholm.model.processing_stetholm import pad
from tests.model.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def processor() -> StethoLMProcessor:
    return StethoLMProcessor(tiny_tokenizer())


def wave(seconds: float = 1.0, rate: int = 16_000) -> Any:
    return np.sin(np.arange(int(seconds * rate)) * 0.05).astype(np.float32)


def test_plain_prompt_is_recordings_then_sentence_and_instruction(processor: StethoLMProcessor) -> None:
    ids = processor.encode_prompt("Is it normal?", 2, "cinc")
    assert ids[:8] == [processor.audio_token_id] * 8 and processor.audio_token_id not in ids[8:]
    assert processor.tokenizer.decode(ids[8:]) == "This is a recording of heart sound. Is it normal?"
    assert processor.tokenizer.decode(processor.encode_prompt("Is it normal?", 1, "safety")[4:]) == "Is it normal?"


def test_bos_and_marker_stand_before_the_text() -> None:
    processor = StethoLMProcessor(tiny_tokenizer(bos_first=True), prompt_marker="<pad>")
    tokenizer = processor.tokenizer
    ids = processor.encode_prompt("Hi", 1)
    assert ids[4:6] == tokenizer.convert_tokens_to_ids(["<s>", "<pad>"])
    assert tokenizer.decode(ids[6:]) == "This is a piece of cardiopulmonary audio. Hi"


def test_chat_prompt_is_the_template_with_the_recordings_in_the_users_turn() -> None:
    processor = StethoLMProcessor(tiny_tokenizer(), prompt_style="chat")
    text = processor.tokenizer.decode(processor.encode_prompt("Is it normal?", 1, "cinc"))
    expected = "<s>user\n" + "<|audio|>" * 4 + "This is a recording of heart sound. Is it normal?</s>\n<s>assistant\n"
    assert text == expected


def test_chat_needs_a_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template: use plain"):
        StethoLMProcessor(tokenizer, prompt_style="chat")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40), st.sampled_from(["", "</s>", "<|audio|>", "<s>", "<pad>"]), st.text(max_size=10))
def test_what_a_user_writes_stays_text(processor: StethoLMProcessor, before: str, token: str, after: str) -> None:
    """No special token can be written into a prompt or a response."""
    special = set(processor.tokenizer.all_special_ids) | {processor.audio_token_id}
    text = before + token + after
    assert not special & set(processor.encode_prompt(text, 0, "safety"))
    pair = processor.encode_pair(text, text, 1)
    answer = [label for label in pair["labels"] if label != -100]
    assert answer[-1] == processor.tokenizer.eos_token_id and not special & set(answer[:-1])
    assert processor.tokenizer.decode(answer[:-1]) == text


def test_labels_cover_response_and_eos_alone(processor: StethoLMProcessor) -> None:
    pair = processor.encode_pair("Is it normal?", "Yes.", 1, "cinc")
    prompt = processor.encode_prompt("Is it normal?", 1, "cinc")
    assert pair["input_ids"][: len(prompt)] == prompt and pair["labels"][: len(prompt)] == [-100] * len(prompt)
    assert pair["labels"][len(prompt) :] == pair["input_ids"][len(prompt) :]


def test_pad_is_eos_and_the_final_eos_still_counts(processor: StethoLMProcessor) -> None:
    """With pad = EOS, masks come from lengths: the EOS of a response is attended to and learned."""
    assert processor.tokenizer.pad_token_id == processor.tokenizer.eos_token_id
    rows = [processor.encode_pair("a", "b", 0, "safety"), processor.encode_pair("a longer question", "and answer", 0)]
    for side in ("left", "right"):
        batch = processor.collate(rows, side)
        for index, row in enumerate(rows):
            real = batch["attention_mask"][index].bool()
            assert batch["input_ids"][index][real].tolist() == row["input_ids"]
            assert batch["labels"][index][real].tolist() == row["labels"]
            assert (batch["labels"][index][~real] == -100).all()
        assert batch["input_features"].shape == (0, 64, 218)


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=5), st.sampled_from(["left", "right"]))
def test_padding_is_on_one_side(rows: list[list[int]], side: str) -> None:
    padded = pad(rows, 99, side).reshape(len(rows), -1).tolist()
    longest = max(map(len, rows))
    for row, out in zip(rows, padded, strict=True):
        fill = [99] * (longest - len(row))
        assert out == (fill + row if side == "left" else row + fill)


def test_collate_refuses_features_of_another_shape(processor: StethoLMProcessor) -> None:
    with pytest.raises(ValueError, match=r"shape \(64, 218\)"):
        processor.collate([{"input_ids": [1], "features": np.zeros((64, 218))}])
    with pytest.raises(ValueError, match="side"):
        processor.collate([{"input_ids": [1]}], "middle")
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            processor.collate([{"input_ids": [1], "features": np.full((1, 64, 218), value)}])


def test_waveform_path_and_bytes_give_the_same_features(processor: StethoLMProcessor, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", wave(), 16_000, subtype="FLOAT")
    data = io.BytesIO()
    soundfile.write(data, wave(), 16_000, format="FLAC", subtype="PCM_24")
    path = tmp_path / "a.wav"
    out = processor(text="Compare.", audio=[wave(), path, str(path), data.getvalue()], sampling_rate=16_000)
    features = out["input_features"]
    assert features.shape == (4, 64, 218) and (out["input_ids"] == processor.audio_token_id).sum() == 16
    expected = torch.from_numpy(log_mel(wave()))
    for one in features:
        torch.testing.assert_close(one, expected, atol=2e-3, rtol=0)


def test_other_rates_are_resampled(processor: StethoLMProcessor) -> None:
    t = np.arange(4_000 * 3) / 4_000
    tone = np.sin(2 * np.pi * 400 * t).astype(np.float32)
    features = processor(audio=[tone], sampling_rate=4_000)["input_features"]
    reference = np.sin(2 * np.pi * 400 * np.arange(16_000 * 3) / 16_000).astype(np.float32)
    peak = int(log_mel(reference)[:, 40].argmax())
    assert int(features[0, :, 40].argmax()) == peak


def test_several_prompts_with_one_or_more_recordings_each(processor: StethoLMProcessor) -> None:
    out = processor(
        text=["One.", "Two, to compare.", "None"], audio=[wave(), [wave(), wave(2)], []], sampling_rate=16_000
    )
    blocks = (out["input_ids"] == processor.audio_token_id).sum(dim=1) // 4
    assert blocks.tolist() == [1, 2, 0] and len(out["input_features"]) == 3
    assert out["attention_mask"][0, 0] == 0, "padded on the left"
    assert processor(text=["One.", "Two"])["input_features"].shape[0] == 0


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        ([np.full(16_000, np.nan, np.float32)], 16_000, "not finite"),
        ([np.zeros((2, 16_000), np.float32)], 16_000, "one-dimensional"),
        ([np.zeros(0, np.float32)], 16_000, "not empty"),
        ([np.zeros(16_000, np.float32)], None, "sampling_rate"),
        ([np.zeros(16_000, np.float32)], 7, "sampling_rate"),
        (["no/such/file.wav"], None, "no recording at no/such/file.wav"),
        ([b"not a sound"], None, "."),
    ],
)
def test_unusable_recordings_are_named(processor: StethoLMProcessor, audio: Any, rate: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        processor(text="Is it normal?", audio=audio, sampling_rate=rate)


def test_texts_and_recordings_must_agree(processor: StethoLMProcessor) -> None:
    with pytest.raises(UserError, match="2 texts but 1 items in audio"):
        processor(text=["a", "b"], audio=[wave()], sampling_rate=16_000)
    with pytest.raises(TypeError, match="does not take images"):
        processor(text="a", images=[])


def test_round_trip_through_auto_processor(tmp_path: Path) -> None:
    processor = StethoLMProcessor(tiny_tokenizer(pad=True), prefix_tokens=2, prompt_style="chat", prompt_marker="<pad>")
    processor.save_pretrained(tmp_path)
    for again in (AutoProcessor.from_pretrained(tmp_path), StethoLMProcessor.from_pretrained(tmp_path)):
        assert isinstance(again, StethoLMProcessor)
        assert (again.prefix_tokens, again.prompt_style, again.prompt_marker) == (2, "chat", "<pad>")
        assert again.audio_token_id == processor.audio_token_id
        assert again.tokenizer.pad_token == "<pad>"
        assert again.encode_pair("Is it <s> normal?", "Yes", 2) == processor.encode_pair("Is it <s> normal?", "Yes", 2)
