"""From a checkpoint in storage to an engine that answers."""

from __future__ import annotations

from typing import Literal

import torch

from stetholm.model.checkpoint import load_checkpoint
from stetholm.model.dtype import fast_dtype
from stetholm.model.packed import pack
from stetholm.serving.engine import Engine
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.storage import Storage

EngineKind = Literal["transformers"]


def load_engine(
    checkpoint_uri: str,
    storage: Storage,
    kind: EngineKind = "transformers",
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    max_batch: int = 32,
) -> Engine:
    """Load a checkpoint with its LoRA merged, on the GPU where there is one, in bf16 where that is fast, else in fp32.

    Raises:
        StorageError: nothing is there.
        UserError: what is there is not a checkpoint of this platform.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or fast_dtype(device.startswith("cuda"))
    model, processor = load_checkpoint(checkpoint_uri, storage, dtype=dtype, merge=True)
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps torch's method
    pack(model)
    return TransformersEngine(model, processor, max_batch=max_batch)
