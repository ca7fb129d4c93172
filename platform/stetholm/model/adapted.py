"""The LoRA layer of an adapted projection: PEFT's, computed in the format of the activations.

PEFT multiplies in the format of the adapter's weights, which are float32 in training: every activation of a bf16
language model is cast to and fro. Here the small weights are cast instead, and the scale goes to the r numbers a token
between them; the weights themselves stay float32. In float32 the outputs are PEFT's but for the order of rounding.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


class AdaptedLinear(Linear):
    """A linear layer with LoRA adapters: W x + sum of s B A dropout(x).

    Only an adapter that trains has dropout: what is frozen gives the same each time.
    """

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        """Add an adapter, as PEFT does it, of our small layers."""
        super().update_layer(adapter_name, r, lora_alpha, config, **kwargs)
        for half in (self.lora_A, self.lora_B):
            half[adapter_name].__class__ = _Small

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out), in the format of ``x``."""
        if self.disable_adapters or self.merged or kwargs:
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x, *args)
        for name in self.active_adapters:
            if name in self.lora_A and self.scaling[name]:
                down, up = self.lora_A[name], self.lora_B[name]
                rate = self._rate(name)
                result = result + up(down(drop(x, rate) if rate else x) * (self.scaling[name] / (1 - rate)))
        return cast(Tensor, result)

    def _rate(self, name: str) -> float:
        """Of an adapter's dropout, now."""
        if not self.training or isinstance(self.lora_dropout[name], nn.Identity) or not _trains(self.lora_A[name]):
            return 0.0
        return cast(float, self.lora_dropout[name].p)


def _trains(part: nn.Module) -> bool:
    # Not by attribute: under ZeRO-3 that would gather the weight.
    return any(parameter.requires_grad for parameter in part.parameters())


class _Small(nn.Linear):
    """A linear layer that computes in the format of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype))


def drop(x: Tensor, rate: float) -> Tensor:
    """``x`` with a share ``rate`` of its numbers at random 0; the others are not scaled.

    On a CPU, where draws are made one by one, each number has the 16 or 32 bits of its format's width (the rate is
    rounded to as many), and a mask over bits makes it 0: three times as fast as torch's dropout.
    """
    if x.device.type != "cpu" or x.dtype not in _BITS:
        return F.dropout(x, rate) * (1 - rate)
    return cast(Tensor, _Masked.apply(x, _mask(x, rate)))


_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def _mask(x: Tensor, rate: float) -> Tensor:
    """Integers as wide as ``x``'s numbers: all bits 1 where it is kept, else 0."""
    kind = _BITS[x.dtype]
    bits, room = torch.iinfo(kind).bits - 1, 8 // x.element_size()
    draws = torch.empty(-(-x.numel() // room), dtype=torch.int64).random_(-(2**63), None).view(kind)
    draws = draws[: x.numel()].view(x.shape).bitwise_and_(2**bits - 1)
    # Those below the kept share become negative, and shifting spreads the sign over all bits.
    return draws.sub_(round((1 - rate) * 2**bits)).bitwise_right_shift_(bits)


class _Masked(torch.autograd.Function):
    """Bits of x and of its gradient, where those of the mask are set."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return (x.view(mask.dtype) & mask).view(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (gradients[0].contiguous().view(mask.dtype) & mask).view(gradients[0].dtype), None
