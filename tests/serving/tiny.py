"""A model of a few thousand random weights with a byte tokenizer: real classes, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import EfficientNetConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stetholm.model.checkpoint import save_checkpoint
from stetholm.model.fresh import assemble, build_processor
from stetholm.model.language import prepare_tokenizer
from stetholm.model.lora import merge_lora
from stetholm.settings import ModelSettings

CONTEXT = 4096


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and an end of text."""
    vocabulary = {symbol: id_ for id_, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>"))


def tiny_model(seed: int = 0) -> tuple[Any, Any]:
    """Model and processor. The head is random enough that answers depend on the prompt and the recordings."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=256,
        bos_token_id=None,
    )
    audio = EfficientNetConfig(
        width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320, image_size=64, batch_norm_momentum=0.01
    )
    model = assemble(LlamaForCausalLM(text), tokenizer, ModelSettings(), audio_config=audio, seed=seed)
    settle(model.model.audio_tower)
    merge_lora(model)
    model.config.language_model = None
    return model, build_processor(tokenizer, model.config)


@torch.no_grad()
def settle(encoder: torch.nn.Module) -> None:
    """Give fresh batch norms the statistics of some noise; without them all recordings look alike."""
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    encoder.train()
    encoder(torch.rand(8, 64, 218) * torch.rand(8, 64, 1))
    encoder.eval()
    for norm in norms:
        norm.momentum = 0.01


def save_tiny(folder: Path, seed: int = 0) -> Path:
    """A checkpoint folder."""
    save_checkpoint(*tiny_model(seed), folder)
    return folder
