"""From a checkpoint in storage to an engine that answers."""

from __future__ import annotations

import logging
from typing import Any

import torch

from stetholm.errors import UserError
from stetholm.model.checkpoint import load_checkpoint
from stetholm.model.dtype import fast_dtype
from stetholm.model.export_language import cached_language_model
from stetholm.model.packed import pack
from stetholm.serving.engine import Engine
from stetholm.serving.prompts import eos_ids
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.serving.vllm_start import VllmOptions, require_vllm, vllm_installed
from stetholm.settings import EngineKind, EngineSettings
from stetholm.storage import Storage

log = logging.getLogger(__name__)

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def choose_engine(kind: EngineKind, gpu: bool) -> EngineKind:
    """What ``auto`` means: vLLM on a GPU, where it is installed.

    On a CPU it takes some 20 s longer to load, which only long jobs and busy endpoints earn back: they name it.
    """
    if kind != "auto":
        return kind
    return "vllm" if gpu and vllm_installed() else "transformers"


def load_engine(
    checkpoint_uri: str,
    storage: Storage,
    kind: EngineKind = "transformers",
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    max_batch: int = 32,
    settings: EngineSettings | None = None,
) -> Engine:
    """Load a checkpoint with its LoRA merged, on the GPU where there is one, in bf16 where that is fast, else in fp32.

    Args:
        checkpoint_uri: folder, ``s3://`` URI or hub id.
        storage: where to fetch a URI from.
        kind: of the engine; ``auto``: see :func:`choose_engine`, and the other one where vLLM does not start.
        device: default: a GPU where there is one.
        dtype: default: as ``settings`` say.
        max_batch: answers that the transformers engine makes together.
        settings: of vLLM.

    Raises:
        StorageError: nothing is there.
        UserError: what is there is not a checkpoint of this platform, or vLLM is not there or does not start.
    """
    settings = settings or EngineSettings()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.startswith("cuda")
    chosen = choose_engine(kind, gpu)
    if chosen == "vllm":
        require_vllm()  # before the long part
    dtype = dtype or _DTYPES.get(settings.dtype) or fast_dtype(gpu)
    model, processor = load_checkpoint(checkpoint_uri, storage, dtype=dtype, merge=True)
    if chosen == "vllm":
        try:
            return vllm_engine(model, processor, device, settings)
        except UserError as error:
            if kind != "auto":
                raise
            log.warning("%s; going on with the engine transformers", error)
            model, processor = load_checkpoint(checkpoint_uri, storage, dtype=dtype, merge=True)
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps torch's method
    pack(model)
    return TransformersEngine(model, processor, max_batch=max_batch)


def vllm_engine(model: Any, processor: Any, device: str, settings: EngineSettings) -> Engine:
    """The vLLM engine of a merged model, whose decoder's memory is given back."""
    from stetholm.serving.prompt_encoder import PromptEncoder
    from stetholm.serving.vllm_engine import VllmEngine

    folder = cached_language_model(model, eos_ids(model.generation_config, processor))
    options = VllmOptions(
        device=device,
        dtype=model.dtype,
        max_num_seqs=settings.max_num_seqs,
        kv_cache_bytes=settings.kv_cache_bytes,
        context=min(settings.max_context, int(model.config.get_text_config().max_position_embeddings)),
        threads=settings.threads,
    )
    generation, encoder = model.generation_config, PromptEncoder(model, device)
    return VllmEngine(encoder, generation, processor, folder, options)
