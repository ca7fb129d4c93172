"""Number formats: the frozen language model computes in bf16 where that is fast; what trains stays in fp32."""

from __future__ import annotations

from typing import Any, Literal

import torch

from stetholm.errors import UserError
from stetholm.model.dtype import fast_dtype
from stetholm.model.loading import is_own


def frozen_dtype(precision: Literal["auto", "bf16", "fp32"], use_gpu: bool) -> torch.dtype:
    """The dtype of the frozen language model for ``train.precision``.

    Raises:
        UserError: bf16 was asked for on a GPU that cannot do it.
    """
    if precision == "fp32":
        return torch.float32
    if precision == "auto":
        return fast_dtype(use_gpu)
    if use_gpu and not torch.cuda.is_bf16_supported():
        raise UserError("train.precision=bf16: this GPU has no bf16; set train.precision=fp32")
    return torch.bfloat16


def to_training_precision(model: Any) -> None:
    """Encoder, projector and adapters to fp32, in place; the frozen language model keeps its dtype.

    Small updates vanish in bf16 weights, and with these few the fp32 copy costs little (mixed precision training,
    arXiv 1710.03740, keeps such a master copy anyway).
    """
    for name, parameter in model.named_parameters():
        if is_own(name):
            parameter.data = parameter.data.float()
