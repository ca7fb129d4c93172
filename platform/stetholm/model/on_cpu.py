"""Parts of a decoder in forms that train faster on a CPU, with the same outputs.

Sequences are short there and memory is slow, so what counts is how often activations are written: torch's attention
has a slow backward pass, and transformers' own repeats keys and normalises in many small steps.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from stetholm.model.packed import pack_for_training

PLAIN = "grouped_plain"
"""Name of :func:`plain_attention` in transformers' register."""


def train_on_cpu(language_model: Any, *, whole: bool = True) -> None:
    """Give a decoder, in place, the forms that it can take: those of this module, and packed frozen weights.

    Args:
        language_model: the decoder.
        whole: its weights stay in this process (not under ZeRO-3, which takes them away between uses).
    """
    if whole:
        pack_for_training(language_model)
    sinks = any(name.endswith(".sinks") for name, _ in language_model.named_parameters())
    language_model.set_attn_implementation("eager" if sinks else PLAIN)
    for module in language_model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            kind: Any = type(module)
            module.__class__ = _lean(kind)


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in plain steps; query heads that share keys become more queries of one head.

    Shapes: ``query`` (rows, heads, tokens, size), ``key`` and ``value`` (rows, key heads, all tokens, size), the mask
    (rows, 1, tokens, all tokens), to be added; gives (rows, tokens, heads, size).
    """
    rows, heads, tokens, size = query.shape
    grouped = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, key.shape[1], -1, size)
    scores = (grouped @ key.transpose(2, 3)).view(rows, heads, tokens, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(dim=-1), dropout, module.training)
    mixed = weights.view(rows, key.shape[1], -1, key.shape[2]) @ value
    return mixed.view(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


class _RootMeanSquare(torch.autograd.Function):
    """n = x / sqrt(mean x^2 + eps), in the format of x, whose gradient is (g - n mean(g n)) / sqrt(mean x^2 + eps)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.float32, copy=True)
        inverse = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
        normal = wide.mul_(inverse).to(x.dtype)
        ctx.save_for_backward(normal, inverse)
        return normal

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        normal, inverse = ctx.saved_tensors
        wide = normal.float()
        slope = gradients[0].to(torch.float32, copy=True)
        common = torch.linalg.vecdot(slope, wide)[..., None] / wide.shape[-1]
        return slope.addcmul_(wide, common, value=-1).mul_(inverse).to(normal.dtype), None


@cache
def _lean(norm: type[nn.Module]) -> type[nn.Module]:
    """A norm class of Llama's form, weight times normalised, with one function for the second factor."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        normal = cast(Tensor, _RootMeanSquare.apply(hidden_states, self.variance_epsilon))
        return cast(Tensor, self.weight * normal)

    return type(norm.__name__, (norm,), {"forward": forward})


AttentionInterface.register(PLAIN, plain_attention)
AttentionMaskInterface.register(PLAIN, eager_mask)
