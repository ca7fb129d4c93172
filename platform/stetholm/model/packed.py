"""Frozen linear layers on a CPU in bf16: weights packed once, as the matrix kernels want them.

Torch packs a bf16 weight anew for every product, which for the few rows of a decoding step takes as long as the product
itself, and for the hundreds of a training step a quarter of it. The packing is oneDNN's, through the operators that
torch's own compiler uses for frozen models.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from stetholm.model.dtype import cpu_has_bf16

ROWS, TRAINING_ROWS = 16, 512
"""Rows of a product for which the packing is chosen, of answers and of training steps; others work too."""
TRAINING_ROOM = 2**30
"""Bytes of weights that training packs at the most: each gets two more copies."""


class PackedLinear(nn.Module):
    """Inference only: what a linear layer computes. It has no parameters to save or train."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        self._packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``input`` (..., in_features) bf16 -> (..., out_features)."""
        return _product(input, self._packed, self.bias)


class FrozenLinear(nn.Linear):
    """A linear layer whose weight does not train, packed for its product and for the gradient of its input.

    What is packed follows the weight: it is made when first needed, and again if the weight has changed since.
    """

    _packs: tuple[torch.Tensor, torch.Tensor] | None = None
    _packed_of: tuple[int, int] = (0, 0)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``input`` (..., in_features) -> (..., out_features); packed if both are bf16 and the weight is frozen."""
        if self.weight.requires_grad or not input.dtype == self.weight.dtype == torch.bfloat16:
            return super().forward(input)
        now = (self.weight.data_ptr(), self.weight._version)
        if self._packs is None or self._packed_of != now:
            self._packs, self._packed_of = self._pack(), now
        return cast(torch.Tensor, _FrozenProduct.apply(input, *self._packs, self.bias))

    def _pack(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight = self.weight.detach()
        reorder = torch.ops.mkldnn._reorder_linear_weight
        return reorder(weight, TRAINING_ROWS), reorder(weight.t().contiguous(), TRAINING_ROWS)


class _FrozenProduct(torch.autograd.Function):
    """x W^T + b, whose gradient by x is g W; W and b have none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, turned: torch.Tensor, bias: Any) -> torch.Tensor:
        ctx.turned = turned
        return _product(x, packed, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _product(gradients[0], ctx.turned, None), None, None, None


def _product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, bias, "none", [], "")
    return product


def can_pack() -> bool:
    """Whether this torch and this processor can."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and cpu_has_bf16() and all(hasattr(torch.ops.mkldnn, n) for n in names)


def pack_for_training(language_model: Any) -> None:
    """Make the bf16 linear layers of a decoder on a CPU such ones, in place, if there is room for the copies."""
    layers = [module for module in language_model.modules() if _fits(module)]
    if can_pack() and sum(layer.weight.nbytes for layer in layers) <= TRAINING_ROOM:
        for layer in layers:
            layer.__class__ = FrozenLinear


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
