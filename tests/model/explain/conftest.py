from typing import Any

import numpy as np
import pytest

from stetholm.model.explain import Clip
from tests.model.tiny import lively, tiny_model


@pytest.fixture(scope="session")
def ready(base: Any) -> Any:
    """A tiny model and its processor, shared: explaining must change nothing in it."""
    model, processor = tiny_model(base)
    return lively(model), processor


@pytest.fixture(scope="session")
def clips() -> list[Clip]:
    """Three recordings of noise, of 7, 7 and 2.3 s."""
    rng = np.random.default_rng(5)
    mels = rng.random((3, 64, 218), dtype=np.float32)
    mels[2, :, 72:] = 0
    return [Clip(mels[0], 7.0), Clip(mels[1], 9.0), Clip(mels[2], 2.3)]
