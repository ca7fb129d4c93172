"""Linear layers for answering on a CPU in bf16: weights packed once, as the matrix kernels want them.

Torch packs a bf16 weight anew for every product, which for the few rows of a decoding step takes as long as the product
itself. The packing is oneDNN's, through the operators that torch's own compiler uses for frozen models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stetholm.model.dtype import cpu_has_bf16

ROWS = 16
"""Rows of a product for which the packing is chosen; others work too."""


class PackedLinear(nn.Module):
    """Inference only: what a linear layer computes. It has no parameters to save or train."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        self._packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``input`` (..., in_features) bf16 -> (..., out_features)."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")
        return product


def can_pack() -> bool:
    """Whether this torch and this processor can."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and cpu_has_bf16() and all(hasattr(torch.ops.mkldnn, n) for n in names)


def pack(model: Any) -> None:
    """Replace the linear layers of a StethoLM's language model and head, if they are bf16 on a CPU.

    Afterwards the model can only answer. A head that is tied to the embeddings is packed beside them.
    """
    if can_pack():
        _pack_inside(model.model.language_model)
        if _fits(model.lm_head):
            model.lm_head = PackedLinear(model.lm_head)


def _pack_inside(module: nn.Module) -> None:
    for name, child in module.named_children():
        if _fits(child):
            setattr(module, name, PackedLinear(child))  # type: ignore[arg-type]
        else:
            _pack_inside(child)


def _fits(module: nn.Module) -> bool:
    """Exactly a linear layer (not LoRA's), in bf16, on a CPU."""
    if type(module) is not nn.Linear:
        return False
    return module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"
