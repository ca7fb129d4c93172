"""Requests as OpenAI writes them: bounds, refusals, the question that the model reads."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stetholm.serving.identity import model_id
from stetholm.serving.types import BadBase64, ChatRequest, InputAudio

AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
TEXT = {"type": "text", "text": "Is this normal?"}


def chat(*parts: object, **more: object) -> dict[str, object]:
    return {"model": "stetholm", "messages": [{"role": "user", "content": list(parts) or "hi"}], **more}


def test_a_question_with_two_recordings():
    request = ChatRequest.model_validate(chat(AUDIO, TEXT, AUDIO))
    assert request.instruction == "Is this normal?" and len(request.recordings) == 2


def test_earlier_turns_go_before_the_question():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [AUDIO, TEXT]},
        {"role": "assistant", "content": "Normal."},
        {"role": "user", "content": "Why?"},
    ]
    request = ChatRequest.model_validate({"model": "m", "messages": messages})
    assert request.instruction == "Be brief.\nUser: Is this normal?\nAssistant: Normal.\nWhy?"
    assert len(request.recordings) == 1


@pytest.mark.parametrize(
    "bad",
    [
        chat({"type": "image_url", "image_url": {"url": "http://x"}}, TEXT),
        chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "exe"}}, TEXT),
        chat({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, TEXT),
        chat(AUDIO),
        chat({"type": "text", "text": "  "}),
        chat({"type": "text", "text": "x" * 10_000}),
        chat(*[AUDIO] * 5, TEXT),
        chat(*[TEXT] * 17),
        chat(temperature=-0.1),
        chat(temperature=float("nan")),
        chat(temperature="1"),
        chat(top_p=1.1),
        chat(n=0),
        chat(n=1_000),
        chat(max_tokens=0),
        chat(seed=2**63),
        chat(stop=["a"] * 5),
        chat(stop=""),
        chat(stop=["x" * 65]),
        chat(tools=[]),
        chat(logprobs=True),
        chat(response_format={"type": "json_object"}),
        chat(frequency_penalty=1.0),
        {"model": "m", "messages": []},
        {"model": "m", "messages": [{"role": "assistant", "content": "hi"}]},
        {"model": "", "messages": [{"role": "user", "content": "hi"}]},
        {"model": "m", "messages": [{"role": "user", "content": "hi"}] * 33},
    ],
)
def test_what_cannot_be_honoured_is_refused(bad):
    with pytest.raises(ValidationError):
        ChatRequest.model_validate(bad)


def test_what_changes_nothing_is_accepted():
    request = ChatRequest.model_validate(chat(user="u", metadata={"a": "b"}, store=False, n=None, presence_penalty=0))
    assert request.budget is None and request.stops == ()


@given(st.binary(min_size=1, max_size=100))
def test_base64_comes_back(data):
    assert InputAudio(data=base64.b64encode(data).decode(), format="wav").to_bytes() == data


@pytest.mark.parametrize("data", ["AAA", "A A A", "é===", "data:audio/wav;base64,AAAA", "AA\nAA", "____"])
def test_anything_else_is_refused(data):
    with pytest.raises(BadBase64):
        InputAudio(data=data, format="wav").to_bytes()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://stetholm/runs/demo/sft/checkpoint/", "stetholm/demo/sft"),
        ("s3://stetholm/runs/demo/dpo/checkpoint-12", "stetholm/demo/dpo/checkpoint-12"),
        ("s3://bucket/models/v3", "stetholm/bucket/models/v3"),
    ],
)
def test_model_ids(uri, expected):
    assert model_id(uri) == expected
