"""Number formats: the frozen language model computes in bf16 where that is fast; what trains stays in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from stetholm.errors import UserError
from stetholm.model.loading import is_own

_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16 ")


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True if the processor multiplies bf16 itself (AVX512-BF16, AMX or Arm's BF16)."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return any(flag in text for flag in _CPU_FLAGS)


def frozen_dtype(precision: Literal["auto", "bf16", "fp32"], use_gpu: bool) -> torch.dtype:
    """The dtype of the frozen language model for ``train.precision``.

    Raises:
        UserError: bf16 was asked for on a GPU that cannot do it.
    """
    if precision == "fp32":
        return torch.float32
    able = torch.cuda.is_bf16_supported() if use_gpu else cpu_has_bf16()
    if precision == "bf16":
        if use_gpu and not able:
            raise UserError("train.precision=bf16: this GPU has no bf16; set train.precision=fp32")
        return torch.bfloat16
    return torch.bfloat16 if able else torch.float32


def to_training_precision(model: Any) -> None:
    """Encoder, projector and adapters to fp32, in place; the frozen language model keeps its dtype.

    Small updates vanish in bf16 weights, and with these few the fp32 copy costs little (mixed precision training,
    arXiv 1710.03740, keeps such a master copy anyway).
    """
    for name, parameter in model.named_parameters():
        if is_own(name):
            parameter.data = parameter.data.float()
