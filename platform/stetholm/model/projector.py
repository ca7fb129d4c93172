"""From one pooled audio vector to the prefix tokens of a recording."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


class PrefixProjector(nn.Module):
    """MLP ``width -> d*k/2 -> d*k -> d*k`` with Tanh and dropout between, reshaped to k tokens of size d.

    The linear layers are ``model.0``, ``model.3`` and ``model.6``, as in the published ``prefix_project``.
    """

    def __init__(self, width: int, d: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.tokens, self.d = tokens, d
        sizes = (width, d * tokens // 2, d * tokens, d * tokens)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.Tanh(), nn.Dropout(dropout)]
        self.model = nn.Sequential(*layers[:-2])

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """``pooled`` (R, width) -> (R, tokens, d)."""
        prefix: torch.Tensor = self.model(pooled)
        return prefix.view(-1, self.tokens, self.d)
