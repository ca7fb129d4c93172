"""A language model without its weights: for a file that brings them, or for a checkpoint that leaves them out."""

from __future__ import annotations

from contextlib import suppress

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from stetholm.model.language import SETTING, explained, language_model_source, quiet


def empty_language_model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """The class and configuration of ``name``; its weights are not set and, until they are, take no memory.

    Unlike a model on the meta device it has the buffers that are computed from the configuration (rotary frequencies).

    Raises:
        UserError: its configuration cannot be loaded.
    """
    source = language_model_source(name)
    with explained("language model", name, SETTING), quiet():
        config = AutoConfig.from_pretrained(source)
        with no_init_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.tie_weights()
        with suppress(OSError):  # there is none: config.json has its ends
            model.generation_config = GenerationConfig.from_pretrained(source)
    return model
