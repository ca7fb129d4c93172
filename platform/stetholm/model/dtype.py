"""Which number format computes fast here."""

from __future__ import annotations

from pathlib import Path

import torch

_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16 ")


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True if the processor multiplies bf16 itself (AVX512-BF16, AMX or Arm's BF16)."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return any(flag in text for flag in _CPU_FLAGS)


def fast_dtype(gpu: bool) -> torch.dtype:
    """bf16 where the GPU or the processor computes in it, else fp32."""
    able = torch.cuda.is_bf16_supported() if gpu else cpu_has_bf16()
    return torch.bfloat16 if able else torch.float32
