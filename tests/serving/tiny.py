"""A model of a few thousand random weights with a byte tokenizer: real classes, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stetholm.model.checkpoint import save_checkpoint
from stetholm.model.fresh import assemble, build_processor
from stetholm.model.language import prepare_tokenizer
from stetholm.model.lora import merge_lora
from stetholm.settings import ModelSettings
from tests.model.tiny import settle, tiny_encoder_config

CONTEXT = 4096


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Bytes, and an end of text."""
    vocabulary = {symbol: id_ for id_, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>"))


def save_tiny_llama(folder: Path, **changes: Any) -> Path:
    """A random Llama of some thousand weights with its tokenizer, for ``model.language_model``."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text = LlamaConfig(**{**sizes, "num_attention_heads": 4, "max_position_embeddings": 512, **changes})
    LlamaForCausalLM(text).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_model(seed: int = 0, head_dim: int = 8) -> tuple[Any, Any]:
    """Model and processor. The head is random enough that answers depend on the prompt and the recordings.

    ``head_dim``: of an attention head; vLLM's kernels know 32 and more.
    """
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=256,
        bos_token_id=None,
    )
    model = assemble(LlamaForCausalLM(text), tokenizer, ModelSettings(), audio_config=tiny_encoder_config(), seed=seed)
    settle(model)
    merge_lora(model)
    model.config.language_model = None
    return model, build_processor(tokenizer, model.config)


def save_tiny(folder: Path, seed: int = 0, head_dim: int = 8) -> Path:
    """A checkpoint folder."""
    save_checkpoint(*tiny_model(seed, head_dim), folder)
    return folder
