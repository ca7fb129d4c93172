"""Buffers that a change of the model's type must leave alone.

``module.bfloat16()``, as DeepSpeed calls it, would round rotary frequencies (at position 200 that turns the angles by
up to half a radian, in training only) and batch-norm statistics (whose running averages would then stop moving).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def apply_keeping_buffers(module: nn.Module, apply: Callable[[], Any]) -> None:
    """Call ``apply``, which moves or converts ``module``; its float32 buffers come out moved, but not converted."""
    exact = {
        (part, name): buffer
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and buffer.dtype == torch.float32 and not buffer.is_meta
    }
    apply()
    for (part, name), buffer in exact.items():
        moved = part._buffers[name]
        if moved is not None and moved.dtype != torch.float32:
            part._buffers[name] = buffer.to(moved.device)
