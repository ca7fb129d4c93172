"""One tiny model for all engine tests."""

from collections.abc import Iterator
from typing import Any

import pytest

from stetholm.serving.transformers_engine import TransformersEngine
from tests.serving.tiny import tiny_model


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    """Model and processor."""
    return tiny_model()


@pytest.fixture
def engine(parts: tuple[Any, Any]) -> Iterator[TransformersEngine]:
    """An engine of its own for each test, on the shared model."""
    engine = TransformersEngine(*parts, max_batch=8)
    yield engine
    engine.close()
