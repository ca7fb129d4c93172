"""A tiny language model for the stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.serving.tiny import tiny_tokenizer


@pytest.fixture(scope="package")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of some thousand weights, as a folder."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(text).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
