"""A new model: a pretrained language model, an encoder, a projector with random weights, LoRA that changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from stetholm.errors import UserError
from stetholm.model.configuration_stetholm import StethoLMConfig
from stetholm.model.encoders import ENCODERS, AudioEncoder
from stetholm.model.encoders.pretrained import pretrained_encoder
from stetholm.model.language import AUDIO_TOKEN, load_language_model, load_tokenizer, token_id
from stetholm.model.lora import add_lora
from stetholm.model.modeling_stetholm import StethoLMForConditionalGeneration
from stetholm.model.processing_stetholm import StethoLMProcessor
from stetholm.settings import ModelSettings

_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
"""What some language models multiply or divide their logits by, after the head."""


def build_model(
    settings: ModelSettings, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[StethoLMForConditionalGeneration, StethoLMProcessor]:
    """The model and processor that ``settings`` describe; the random parts are drawn from ``seed``.

    Raises:
        UserError: the language model or the encoder cannot be loaded or used.
    """
    if settings.audio_encoder not in ENCODERS:
        raise UserError(
            f"there is no audio encoder {settings.audio_encoder!r}: "
            f"set model.audio_encoder to one of {', '.join(sorted(ENCODERS))}"
        )
    encoder = None
    if settings.audio_encoder_weights:
        encoder = pretrained_encoder(settings.audio_encoder, settings.audio_encoder_weights)
    causal_lm = load_language_model(settings.language_model, dtype)
    tokenizer = load_tokenizer(settings.language_model)
    model = assemble(causal_lm, tokenizer, settings, dtype=dtype, seed=seed, encoder=encoder)
    return model, build_processor(tokenizer, model.config)


def assemble(
    causal_lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelSettings,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    audio_config: Any = None,
    encoder: tuple[AudioEncoder, Any] | None = None,
) -> StethoLMForConditionalGeneration:
    """Put an encoder, a projector and an adapter "default" to a loaded language model.

    Args:
        causal_lm: any causal language model; its weights are used, not copied.
        tokenizer: its tokenizer, with the placeholder ``<|audio|>``.
        settings: names the base, the encoder, the prompt style and LoRA's size.
        dtype: of the new parts.
        seed: of the new parts.
        audio_config: size of the encoder; default: the published one.
        encoder: a pretrained encoder and its configuration; default: a random one of ``audio_config``.

    Raises:
        UserError: the language model's head is of a kind that we would not compute rightly.
    """
    head, text = _checked_head(causal_lm), causal_lm.config.get_text_config()
    # A composite model may say it in its outer configuration only.
    text.tie_word_embeddings = head.weight is causal_lm.get_input_embeddings().weight
    config = StethoLMConfig(
        audio_config=audio_config if encoder is None else encoder[1],
        text_config=copy.deepcopy(text),
        audio_encoder=settings.audio_encoder,
        audio_token_id=token_id(tokenizer, AUDIO_TOKEN),
        prompt_style=settings.prompt_style,
        projector_dropout=settings.projector_dropout,
        language_model=settings.language_model,
        weights="adapter",
        head_bias=head.bias is not None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = StethoLMForConditionalGeneration(config, causal_lm)
        add_lora(model, settings.lora)
    if encoder is not None:
        model.model.audio_tower.load_state_dict(encoder[0].state_dict())
    model.model.audio_tower.to(dtype)
    model.model.projector.to(dtype)
    model.generation_config = _generation_config(causal_lm, tokenizer, config)
    model.config.dtype = dtype
    return model.eval()


def build_processor(tokenizer: PreTrainedTokenizerBase, config: StethoLMConfig) -> StethoLMProcessor:
    """The processor that goes with a model of ``config``."""
    gemma = str(config.text.model_type).startswith("gemma3")
    # MedGemma's prompt starts where an image would have ended, as in the published code.
    marker = "<end_of_image>" if gemma and "<end_of_image>" in tokenizer.get_vocab() else ""
    return StethoLMProcessor(
        tokenizer, prefix_tokens=config.prefix_tokens, prompt_style=config.prompt_style, prompt_marker=marker
    )


def _checked_head(causal_lm: PreTrainedModel) -> nn.Linear:
    head, text = causal_lm.get_output_embeddings(), causal_lm.config.get_text_config()
    scaled = [key for key in _SCALES if getattr(text, key, None) not in (None, 1, 1.0)]
    if not isinstance(head, nn.Linear) or scaled:
        raise UserError(
            f"{type(causal_lm).__name__} computes its logits in a way that is not supported "
            f"({', '.join(scaled) or type(head).__name__}): choose another model.language_model"
        )
    return head


def _generation_config(
    causal_lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: StethoLMConfig
) -> GenerationConfig:
    """Greedy; ends at the base model's own ends and at the tokenizer's EOS; never writes the placeholder."""
    base = causal_lm.generation_config.eos_token_id if causal_lm.generation_config else None
    ends = {tokenizer.eos_token_id, *(base if isinstance(base, list) else [base])} - {None}
    in_vocabulary = config.audio_token_id < config.text.vocab_size
    return GenerationConfig(
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[config.audio_token_id] if in_vocabulary else None,
    )
