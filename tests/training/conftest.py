"""A tiny language model for the stages; a process that trains alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """This process trains alone; afterwards nothing of it is left for other tests."""
    import deepspeed

    from stetholm.training.ranks import join_group

    before = dict(os.environ)
    join_group(use_gpu=False)
    yield
    deepspeed.comm.destroy_process_group()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
