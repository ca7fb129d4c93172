"""LoRA on the language model's attention projections, and what trains in each stage.

The adapters are PEFT layers injected into the language model; the model's class stays what it is. Several may be
active together: "default" from SFT, frozen, and "dpo" on top of it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from stetholm.errors import UserError
from stetholm.model.adapted import AdaptedLinear
from stetholm.settings import LoraSettings

if TYPE_CHECKING:
    from stetholm.model.modeling_stetholm import StethoLMForConditionalGeneration, StethoLMModel

USUAL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj")
TARGETS = r".*\.(" + "|".join(USUAL_TARGETS) + ")"
"""Attention projections; ``qkv_proj`` is Phi's, all three in one."""

Stage = Literal["align", "sft", "dpo"]


def inject_lora(language_model: nn.Module, name: str, adapter: dict[str, Any]) -> None:
    """Add the adapter ``name`` to a decoder and make all its adapters active.

    Args:
        language_model: the decoder.
        name: of the adapter.
        adapter: ``{"r", "alpha", "dropout"}``, perhaps ``"targets"``: names of the linear layers to adapt.

    Raises:
        UserError: the decoder has no layers of those names.
    """
    targets = adapter.get("targets")
    _check_targets(language_model, targets)
    config = LoraConfig(
        r=adapter["r"], lora_alpha=adapter["alpha"], lora_dropout=adapter["dropout"], target_modules=targets or TARGETS
    )
    config._register_custom_module({nn.Linear: AdaptedLinear})
    with warnings.catch_warnings():
        # Several adapters at once are meant.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, language_model, adapter_name=name)
    for layer in lora_layers(language_model):
        layer.set_adapter([*layer.r])
        # transformers must not draw these anew: B starts at zero.
        for part in layer.modules():
            part._is_hf_initialized = True


def _check_targets(language_model: nn.Module, targets: Sequence[str] | None) -> None:
    """Every named target, or one of the usual ones, must be a linear layer of the decoder."""
    linear = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in language_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and ".lora_" not in name
    }
    missing = sorted(set(targets or ()) - linear)
    if missing or not (targets or linear & set(USUAL_TARGETS)):
        raise UserError(
            f"LoRA finds no {', '.join(missing or USUAL_TARGETS)} in {type(language_model).__name__}: "
            f"name its attention projections in model.lora.targets (its linear layers: {', '.join(sorted(linear))})"
        )


def lora_layers(model: nn.Module) -> list[Any]:
    """The adapted projections of ``model``."""
    return [module for _, module in _named_lora_layers(model)]


def _named_lora_layers(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def add_lora(model: StethoLMForConditionalGeneration, settings: LoraSettings, name: str = "default") -> None:
    """Add a fresh adapter (B = 0: the model's outputs do not change) and note it in the configuration.

    Raises:
        ValueError: there is one of that name already.
    """
    config = model.config
    if name in (config.lora or {}):
        raise ValueError(f"the model already has an adapter {name!r}: merge it (merge_lora) or choose another name")
    adapter: dict[str, Any] = {"r": settings.r, "alpha": settings.alpha, "dropout": settings.dropout}
    if settings.targets:
        adapter["targets"] = list(settings.targets)
    inject_lora(model.model.language_model, name, adapter)
    config.lora = {**(config.lora or {}), name: adapter}


@torch.no_grad()
def merge_lora(model: StethoLMForConditionalGeneration) -> None:
    """Fold all adapters into the language model's weights, each weight rounded once; afterwards there are none."""
    decoder: Any = model.model.language_model
    for name, module in _named_lora_layers(decoder):
        base = module.get_base_layer()
        delta = sum(module.get_delta_weight(adapter).float() for adapter in module.r)
        base.weight.copy_(base.weight.float() + delta)
        decoder.set_submodule(name, base)
    if getattr(decoder, "peft_config", None) is not None:
        del decoder.peft_config
    decoder._hf_peft_config_loaded = False
    model.config.lora = None
    model.config.weights = "full"


def set_trainable(model: StethoLMForConditionalGeneration, stage: Stage) -> None:
    """Freeze everything but what ``stage`` trains.

    align: encoder and projector. sft: these and the adapter "default". dpo: projector and the adapter "dpo";
    a frozen copy of the projector becomes part of the reference policy (see :func:`reference`).

    Raises:
        ValueError: the stage's adapter is missing.
    """
    adapter = {"align": None, "sft": "default", "dpo": "dpo"}[stage]
    if adapter and adapter not in (model.config.lora or {}):
        raise ValueError(f"stage {stage!r} trains the adapter {adapter!r}, which the model lacks: call add_lora first")
    inner = model.model
    if stage == "dpo":
        inner.reference_projector = _frozen_copy(inner.projector)
    model.requires_grad_(False)
    inner.projector.requires_grad_(True)
    inner.audio_tower.requires_grad_(stage != "dpo")
    for name, parameter in inner.language_model.named_parameters():
        if adapter and ".lora_" in name and f".{adapter}." in name:
            parameter.requires_grad_(True)
    inner.train(inner.training)


@contextmanager
def reference(model: StethoLMForConditionalGeneration, adapter: str = "dpo") -> Iterator[None]:
    """Inside, ``model`` is the policy before mDPO: ``adapter`` off, the frozen projector in place, eval mode.

    Raises:
        ValueError: ``set_trainable(model, "dpo")`` has not been called.
    """
    inner: StethoLMModel = model.model
    if inner.reference_projector is None:
        raise ValueError('there is no reference projector: call set_trainable(model, "dpo") first')
    layers, training = lora_layers(inner.language_model), model.training
    # Scale 0, not PEFT's set_adapter: that would toggle requires_grad under a running engine.
    for layer in layers:
        layer.set_scale(adapter, 0.0)
    inner.use_reference = True
    model.eval()
    try:
        yield
    finally:
        inner.use_reference = False
        for layer in layers:
            layer.set_scale(adapter, 1.0)
        model.train(training)


def _frozen_copy(projector: nn.Module) -> Any:
    parameters = list(projector.parameters())
    with gathered(parameters):
        copied = copy.deepcopy(projector) if not _partitioned(parameters) else _rebuild(projector)
    return copied.requires_grad_(False)


def _rebuild(projector: Any) -> nn.Module:
    """An ordinary copy of a projector whose (gathered) parameters belong to DeepSpeed."""
    from stetholm.model.projector import PrefixProjector

    first = projector.model[0]
    fresh = PrefixProjector(first.in_features, projector.d, projector.tokens, 0.0)
    fresh.to(first.weight.device, first.weight.dtype).load_state_dict(projector.state_dict())
    return fresh


def _partitioned(parameters: Sequence[torch.Tensor]) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in parameters)


def gathered(parameters: Sequence[torch.Tensor]) -> AbstractContextManager[Any]:
    """Whole parameters inside, also under ZeRO-3."""
    if not _partitioned(parameters):
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
    return context
