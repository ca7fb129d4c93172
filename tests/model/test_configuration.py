from typing import Any

import pytest
from transformers import ASTConfig, AutoConfig, EfficientNetConfig

from stetholm.model import StethoLMConfig
from tests.model.tiny import tiny_encoder_config


def test_default_is_the_published_size() -> None:
    config = StethoLMConfig()
    assert config.audio_config.hidden_dim == 1280 and config.prefix_tokens == 4
    assert config.audio_config.batch_norm_momentum == 0.1, "torch's convention, not Keras'"


def test_round_trip_through_auto_config(tmp_path: Any) -> None:
    config = StethoLMConfig(
        audio_config=tiny_encoder_config(),
        text_config={"model_type": "qwen2", "hidden_size": 32, "tie_word_embeddings": True},
        language_model="some/base",
        weights="adapter",
        lora={"default": {"r": 8, "alpha": 32, "dropout": 0.1}},
        prompt_style="chat",
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, StethoLMConfig)
    assert {**again.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert again.width == 32 and again.tie_word_embeddings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio_encoder": "whisper"}, "choose one of ast, clap, cola"),
        ({"audio_encoder": "ast", "audio_config": EfficientNetConfig()}, "needs 'audio-spectrogram-transformer'"),
        ({"audio_config": ASTConfig()}, "needs 'efficientnet'"),
        ({"audio_config": EfficientNetConfig(width_coefficient=1.0)}, "set hidden_dim to 1280"),
        (
            {"audio_config": EfficientNetConfig(width_coefficient=1.0, hidden_dim=1280)},
            "batch_norm_momentum 0.99 is Keras' convention",
        ),
        ({"text_config": {"model_type": "no-such-model"}}, "not known to the installed transformers"),
        ({"prefix_tokens": 0}, "prefix_tokens is 0"),
        ({"audio_token_id": -1}, "audio_token_id is -1"),
        ({"projector_dropout": 1.0}, "projector_dropout"),
        ({"prompt_style": "poem"}, "choose one of plain, chat"),
        ({"weights": "adapter"}, "names no base model"),
        ({"lora": {"default": {"r": 0, "alpha": 1, "dropout": 0.0}}}, "lora.default"),
    ],
)
def test_sizes_that_disagree_are_refused_with_the_remedy(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StethoLMConfig(**fields)
