import os
from pathlib import Path

import pytest
import torch

from stetholm.model import StethoLMForConditionalGeneration, StethoLMProcessor
from tests.model.tiny import lively, tiny_base, tiny_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk."""
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def pair(base: Path) -> tuple[StethoLMForConditionalGeneration, StethoLMProcessor]:
    """A fresh tiny model whose adapter and encoder do something, and its processor."""
    model, processor = tiny_model(base)
    return lively(model), processor
