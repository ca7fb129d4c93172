"""A checkpoint's model files: written by training, read by every later job.

``lineage.json``, ``settings.yaml``, ``training_state/`` and ``README.md`` beside them are the trainer's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stetholm.errors import UserError
from stetholm.model.loading import is_own, local_folder, read_weights
from stetholm.model.lora import lora_layers, merge_lora
from stetholm.model.modeling_stetholm import StethoLMForConditionalGeneration
from stetholm.model.processing_stetholm import StethoLMProcessor

if TYPE_CHECKING:
    from stetholm.storage import Storage


def save_checkpoint(
    model: StethoLMForConditionalGeneration,
    processor: StethoLMProcessor,
    folder: Path,
    state_dict: dict[str, Any] | None = None,
) -> None:
    """Write configuration, weights, tokenizer and processor files to ``folder``.

    Args:
        model: the model (its configuration says whether the base weights are left out).
        processor: the processor it was trained with.
        folder: made if it is not there.
        state_dict: weights gathered by the trainer, by the model's own names; default: the model's. Keys beyond
            what the checkpoint holds are left out.

    Raises:
        ValueError: ``state_dict`` lacks weights that the checkpoint must hold.
    """
    if state_dict is not None:
        missing = sorted(own_keys(model) - state_dict.keys())
        if missing:
            raise ValueError(f"state_dict lacks {len(missing)} weights, e.g. {missing[0]}")
        state_dict = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    model.save_pretrained(folder, state_dict=state_dict)
    processor.save_pretrained(folder)


def own_keys(model: StethoLMForConditionalGeneration) -> set[str]:
    """Names of the weights and buffers that a checkpoint of ``model`` holds."""
    from stetholm.model.loading import own_state

    tied = set(model.all_tied_weights_keys or {})
    return set(own_state(model.config, model.state_dict())) - tied


def load_checkpoint(
    source: str | Path, storage: Storage | None = None, dtype: torch.dtype | None = None, merge: bool = False
) -> tuple[StethoLMForConditionalGeneration, StethoLMProcessor]:
    """Model (eval mode) and processor of a checkpoint.

    Args:
        source: folder or ``s3://`` URI.
        storage: where to fetch a URI from; default: from the settings (``stetholm.storage.default_storage``).
        dtype: default: the type it was saved in.
        merge: fold the adapters into the language model's weights, as for serving; each weight is rounded once.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    folder = local_folder(source, storage)
    processor = StethoLMProcessor.from_pretrained(folder)
    model = StethoLMForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    if merge:
        if model.config.lora and model.dtype != torch.float32 and Path(folder).is_dir():
            _sharpen_adapters(model, Path(folder))
        merge_lora(model)
    return model, processor


def _sharpen_adapters(model: StethoLMForConditionalGeneration, folder: Path) -> None:
    """Take the adapters into ``model`` once more, in float32: training saves them so."""
    for layer in lora_layers(model.get_decoder()):
        for part in (*layer.lora_A.values(), *layer.lora_B.values()):
            part.float()
    model.load_state_dict(read_weights(folder, lambda key: ".lora_" in key), strict=False)


def load_own_weights(
    model: StethoLMForConditionalGeneration, source: str | Path, storage: Storage | None = None
) -> None:
    """Copy encoder, projector and adapters of a checkpoint into ``model``, as exactly as ``model``'s types hold them.

    Args:
        model: a model of the checkpoint's sizes; adapters that only the model has stay as they are.
        source: folder or ``s3://`` URI.
        storage: where to fetch a URI from.

    Raises:
        UserError: the checkpoint is damaged or holds weights that the model lacks.
    """
    state = read_weights(Path(local_folder(source, storage)), is_own)
    unknown = sorted(state.keys() - model.state_dict().keys())
    if unknown:
        raise UserError(f"checkpoint {source} has weights that the model lacks ({unknown[0]}): is it of another model?")
    model.load_state_dict(state, strict=False)
