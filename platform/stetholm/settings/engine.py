"""What generates answers: which engine, and what it may use."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stetholm.settings.base import Section

EngineKind = Literal["auto", "transformers", "vllm"]
"""``transformers``: the reference. ``vllm``: continuous batching. ``auto``: see docs/engines.md."""


class EngineSettings(Section):
    """Limits of an engine. Which one it is: ``serve.engine``, ``prefer.engine``, ``evaluate.engine``."""

    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the GPU or the processor computes in it."""
    max_num_seqs: int = Field(32, ge=1)
    """vLLM: answers computed together."""
    kv_cache_bytes: int | None = Field(None, ge=2**24)
    """vLLM: memory for keys and values. Default: 1 GiB on a CPU, what is free on a GPU."""
    max_context: int = Field(8192, ge=64)
    """vLLM: tokens of prompt and answer together; the model's own limit, where that is less."""
    threads: int | None = Field(None, ge=1)
    """vLLM on a CPU: of the language model. Default: as torch has them in the process that owns the engine."""
