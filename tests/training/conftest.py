"""A tiny language model for the stages; a process that trains alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.tiny import save_tiny_llama
from tests.training.together import trains_alone


@pytest.fixture(scope="package")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of some thousand weights, as a folder."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """This process trains alone; afterwards nothing of it is left for other tests."""
    with trains_alone():
        yield
