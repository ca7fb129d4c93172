"""The language model of a StethoLM alone, as a folder that any engine for causal language models can load."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import AutoModelForCausalLM, GenerationConfig

from stetholm.storage.locks import locked
from stetholm.storage.paths import home

KEPT = 4
"""Exports that stay in the cache."""
RECENT = 900.0
"""Seconds in which an export may still be read by whoever asked for it: it is not removed."""


def cached_language_model(model: Any, eos: frozenset[int]) -> Path:
    """The export of a merged model's language model in this machine's cache, written unless it is there.

    The folder's name is a digest of weights and configuration, so that it can never be another checkpoint's.

    Args:
        model: StethoLMForConditionalGeneration without adapters.
        eos: ids that end an answer.
    """
    state, config = _state(model)
    cache = home() / "cache" / "language-models"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / _digest(state, config, eos)
    with locked(cache / "lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="partial-") as scratch:
                folder = Path(scratch, "model")
                folder.mkdir()
                save_torch_state_dict(state, folder, max_shard_size="5GB", metadata={"format": "pt"})
                config.save_pretrained(folder)
                GenerationConfig(eos_token_id=sorted(eos)).save_pretrained(folder)
                folder.rename(target)
        (target / "used").touch()
        _tidy(cache)
    return target


def _state(model: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Weights under the names of the ``AutoModelForCausalLM`` class, and its configuration."""
    if model.config.lora:
        raise ValueError("merge the adapters first (merge_lora)")
    config = copy.deepcopy(model.config.text)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    names = {id(module): name for name, module in skeleton.named_modules()}
    decoder, head = names[id(skeleton.get_decoder())], names[id(skeleton.get_output_embeddings())]
    state = {f"{decoder}.{key}": value for key, value in model.model.language_model.state_dict().items()}
    if not config.tie_word_embeddings:
        state |= {f"{head}.{key}": value for key, value in model.lm_head.state_dict().items()}
    config.architectures, config.dtype = [type(skeleton).__name__], model.dtype
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}, config


def _digest(state: dict[str, torch.Tensor], config: Any, eos: frozenset[int]) -> str:
    found = hashlib.sha256(json.dumps([config.to_dict(), sorted(eos)], sort_keys=True, default=str).encode())
    for key, value in sorted(state.items()):
        found.update(key.encode())
        found.update(value.view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


def _tidy(cache: Path) -> None:
    """Remove all but the ``KEPT`` exports used last, and none used lately."""
    used = sorted(((mark.stat().st_mtime, mark.parent) for mark in cache.glob("*/used")), reverse=True)
    for when, folder in used[KEPT:]:
        if time.time() - when > RECENT:
            shutil.rmtree(folder, ignore_errors=True)
