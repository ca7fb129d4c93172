"""Batch norm that keeps its statistics in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stetholm.model.exact import apply_keeping_buffers


class FloatBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with statistics kept and applied in float32, whatever the type of the model.

    A running average in bfloat16 stops moving: with momentum 0.1 a change under 2 % is lost in rounding.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> FloatBatchNorm2d:
        apply_keeping_buffers(self, lambda: super(FloatBatchNorm2d, self)._apply(fn, recurse))
        return self

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise ``input`` (N, C, H, W); the result has its type."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        # Torch takes a bf16 input with float32 parameters as it is, and computes in float32.
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight.float(),
            self.bias.float(),
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


def float_norms(network: nn.Module) -> list[FloatBatchNorm2d]:
    """Make the batch norms of ``network`` (transformers' own) such ones, in place; all of them."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = FloatBatchNorm2d
            for name in ("running_mean", "running_var"):  # the network may have been made in another type
                setattr(module, name, getattr(module, name).float())
    return [module for module in network.modules() if isinstance(module, FloatBatchNorm2d)]
