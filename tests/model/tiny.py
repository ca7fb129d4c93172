"""Small random models of true classes, made in a moment: for the tests of what uses a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    EfficientNetConfig,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from stetholm.model import StethoLMForConditionalGeneration, StethoLMProcessor
from stetholm.model.fresh import assemble, build_processor
from stetholm.model.language import load_language_model, load_tokenizer
from stetholm.settings import LoraSettings, ModelSettings

TEXT = "Is this heart sound normal or abnormal? The lung sounds show wheezes and crackles. This is a recording of."
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
_SIZE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
TEXT_CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SIZE, tie_word_embeddings=True),
    "llama-untied": lambda: LlamaConfig(**_SIZE, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**_SIZE),
    "qwen3": lambda: Qwen3Config(**_SIZE),
    "gemma3": lambda: Gemma3TextConfig(
        **_SIZE, sliding_window=16, final_logit_softcapping=20.0, layer_types=["sliding_attention", "full_attention"]
    ),
}


def tiny_tokenizer(pad: bool = False, bos_first: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens; ``<s>`` begins, ``</s>`` ends."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    if bos_first:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>", "eos_token": "</s>", **({"pad_token": "<pad>"} if pad else {})}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **names)


def tiny_encoder_config() -> EfficientNetConfig:
    """The B0 layout at a quarter of the width, one block a stage."""
    return EfficientNetConfig(
        width_coefficient=0.25,
        depth_coefficient=1.0,
        num_block_repeats=[1] * 7,
        hidden_dim=320,
        batch_norm_momentum=0.1,
        drop_connect_rate=0.0,
    )


def tiny_base(folder: Path, kind: str = "llama", seed: int = 0) -> Path:
    """A random language model with its tokenizer in ``folder``."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(TEXT_CONFIGS[kind]()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_settings(base: Path, **more: Any) -> ModelSettings:
    """Settings that name ``base``; no dropout anywhere, so that training mode is deterministic."""
    values: dict[str, Any] = {"lora": LoraSettings(r=4, alpha=8, dropout=0.0), "projector_dropout": 0.0, **more}
    return ModelSettings(language_model=str(base), **values)


def tiny_model(
    folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **more: Any
) -> tuple[StethoLMForConditionalGeneration, StethoLMProcessor]:
    """Model and processor over a random base that lies in ``folder``."""
    base = folder if (folder / "config.json").exists() else tiny_base(folder, kind)
    tokenizer = load_tokenizer(str(base))
    causal_lm = load_language_model(str(base), dtype)
    model = assemble(causal_lm, tokenizer, tiny_settings(base, **more), dtype=dtype, audio_config=tiny_encoder_config())
    return model, build_processor(tokenizer, model.config)


def lively(model: StethoLMForConditionalGeneration) -> StethoLMForConditionalGeneration:
    """Give the parts that start at nothing (LoRA's B, statistics) some values, so that a test sees their effect."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.5)
        model.model.projector.model[-1].weight.mul_(5)
    settle(model)
    return model.eval()


@torch.no_grad()
def settle(model: StethoLMForConditionalGeneration) -> None:
    """Give fresh batch norms the statistics of some noise; without them all recordings look alike."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.model.audio_tower.train()
    model.encode_audio(torch.rand(8, 64, 218) * torch.rand(8, 64, 1))
    model.model.audio_tower.eval()
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
