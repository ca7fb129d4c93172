"""The configuration of a StethoLM model, as ``config.json`` holds it."""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from stetholm.model.encoders import encoder_class

LORA_KEYS = {"r", "alpha", "dropout"}


@strict
class StethoLMConfig(PreTrainedConfig):
    """Audio encoder + projector + language model.

    Args:
        audio_config: configuration of the audio encoder (EfficientNet, AST or CLAP audio).
        text_config: configuration of the language model.
        audio_encoder: name of the encoder: ``cola``, ``ast``, ``clap`` or another that is registered.
        prefix_tokens: embeddings that one recording takes in the prompt.
        audio_token_id: the placeholder's id; it may lie beyond the vocabulary, as it is never looked up.
        prompt_style: ``plain`` (the published prompt) or ``chat`` (the language model's own template).
        projector_dropout: dropout between the projector's layers.
        language_model: the base model's id, as given in the settings; None if there is no base to load.
        lora: adapters on the language model, ``{name: {"r": 8, "alpha": 32, "dropout": 0.1}}``, with ``"targets"`` (a
            list of layer names) where these are not the usual ones.
        head_bias: whether the language model's head has a bias.
        weights: ``adapter`` if a checkpoint leaves out the language model's base weights, else ``full``.
    """

    model_type = "stetholm"
    sub_configs: ClassVar[dict[str, Any]] = {"audio_config": AutoConfig, "text_config": AutoConfig}

    audio_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    audio_encoder: str = "cola"
    prefix_tokens: int = 4
    audio_token_id: int = 49152
    prompt_style: str = "plain"
    projector_dropout: float = 0.1
    language_model: str | None = None
    lora: dict[str, Any] | None = None
    weights: str = "full"
    head_bias: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        encoder = encoder_class(self.audio_encoder)
        self.audio_config = _sub_config(self.audio_config, encoder.default_config, encoder.config_class)
        self.text_config = _sub_config(self.text_config, CONFIG_MAPPING["llama"])
        kwargs["tie_word_embeddings"] = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__post_init__(**kwargs)
        self._check(encoder)

    def _check(self, encoder: Any) -> None:
        """Raise ValueError, naming the key and the remedy, where parts of the configuration disagree."""
        if not isinstance(self.audio_config, encoder.config_class):
            kind = getattr(self.audio_config, "model_type", None)
            raise ValueError(
                f"audio_config is of type {kind!r}, but audio_encoder {self.audio_encoder!r} "
                f"needs {encoder.config_class.model_type!r}: change one of the two"
            )
        encoder.check_config(self.audio_config)
        for key in ("prefix_tokens", "audio_token_id"):
            if not isinstance(getattr(self, key), int):
                raise ValueError(f"{key} is {getattr(self, key)!r}: give a whole number")
        if self.prefix_tokens < 1:
            raise ValueError(f"prefix_tokens is {self.prefix_tokens}: give 1 or more (published: 4)")
        if self.audio_token_id < 0:
            raise ValueError(f"audio_token_id is {self.audio_token_id}: give the tokenizer's id of <|audio|>")
        if not 0 <= self.projector_dropout < 1:
            raise ValueError(f"projector_dropout is {self.projector_dropout}: give a number in [0, 1)")
        _check_choice("prompt_style", self.prompt_style, ("plain", "chat"))
        _check_choice("weights", self.weights, ("adapter", "full"))
        if self.weights == "adapter" and not self.language_model:
            raise ValueError("weights is 'adapter' but language_model names no base model: name it, or use 'full'")
        for name, adapter in (self.lora or {}).items():
            if set(adapter) - {"targets"} != LORA_KEYS or adapter["r"] < 1:
                raise ValueError(f"lora.{name} is {adapter}: give r (1 or more), alpha, dropout and perhaps targets")

    @property
    def text(self) -> Any:
        """``text_config`` as the configuration object that it is after construction."""
        return self.text_config

    @property
    def width(self) -> int:
        """d, the language model's embedding size."""
        return int(self.text.hidden_size)


def _sub_config(given: Any, default: Any, own: type[PreTrainedConfig] | None = None) -> PreTrainedConfig:
    """``given`` as an object; a dictionary by its ``model_type``, of the ``own`` class or of one of transformers."""
    if given is None:
        made: PreTrainedConfig = default()
        return made
    if isinstance(given, dict):
        fields = dict(given)
        kind = fields.pop("model_type", None)
        if own is not None and kind == own.model_type:
            return own(**fields)
        if kind not in CONFIG_MAPPING:
            raise ValueError(f"model_type {kind!r} in the configuration is not known to the installed transformers")
        given = CONFIG_MAPPING[kind](**fields)
    config: PreTrainedConfig = given
    return config


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
