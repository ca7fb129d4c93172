from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.importing.published import Encoder, live_encoder


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """OPERA-CE's encoder with weights of no use."""
    return live_encoder()


@pytest.fixture
def opera(encoder: Encoder) -> dict[str, torch.Tensor]:
    """The state dict of an OPERA-CE checkpoint: the encoder, and the heads of its training."""
    heads = torch.nn.ModuleDict(
        {
            "g": torch.nn.Linear(1280, 8),
            "layer_norm": torch.nn.LayerNorm(8),
            "linear": torch.nn.Linear(8, 8, bias=False),
        }
    )
    return {**{f"encoder.{key}": value for key, value in encoder.state_dict().items()}, **heads.state_dict()}


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """Saves an object with torch; returns its file."""

    def save(content: Any, name: str = "weights.pt") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save
