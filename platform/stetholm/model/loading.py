"""Loading and saving, shared by the model classes: folders, hub ids and ``s3://`` URIs, adapters and whole models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_utils import local_torch_dtype
from transformers.utils import GENERATION_CONFIG_NAME

from stetholm.errors import UserError
from stetholm.model.configuration_stetholm import StethoLMConfig
from stetholm.model.language import load_language_model, quiet

WEIGHTS = "model.safetensors"
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
INDEX = f"{WEIGHTS}.index.json"
"""Of a checkpoint whose weights are in several files: which file holds which."""
_ADAPTER_KWARGS = {"dtype", "torch_dtype", "attn_implementation", "output_loading_info"}
# What the Auto classes pass on and what concerns downloads: nothing to do with how an adapter is loaded.
_HARMLESS_KWARGS = {
    *("adapter_kwargs", "cache_dir", "code_revision", "force_download", "local_files_only", "low_cpu_mem_usage"),
    *("revision", "token", "trust_remote_code", "use_safetensors", "weights_only", "_from_auto", "_commit_hash"),
}


class CheckpointedModel(PreTrainedModel):
    """``from_pretrained`` and ``save_pretrained`` that know URIs and checkpoints without the base model's weights."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, source: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """A model from a folder, an ``s3://`` URI or a hub id, in eval mode.

        A checkpoint without the language model's weights (``config.weights == "adapter"``) takes them from
        ``config.language_model``.

        Raises:
            UserError: something is missing, damaged or of another shape; the message names the remedy.
        """
        parent = cast(Any, super())
        if source is None:
            return parent.from_pretrained(None, *args, **kwargs)
        folder = local_folder(source)
        config = kwargs.pop("config", None) or read_config(folder)
        if config.weights == "adapter":
            return _load_adapter(cls, config, on_disk(folder), kwargs)
        kwargs["use_safetensors"] = True
        want_info, tolerant = (kwargs.pop(key, False) for key in ("output_loading_info", "ignore_mismatched_sizes"))
        if Path(folder).is_dir() and not kwargs.keys() & {"subfolder", "variant"}:
            _check_files(Path(folder))
        always = {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            with quiet():
                model, info = parent.from_pretrained(folder, *args, **always, **kwargs)
        except SafetensorError as error:  # of a hub id: a folder's files have been looked at
            raise _damaged(source, WEIGHTS, error) from error
        except OSError as error:
            raise UserError(f"no weights in checkpoint {source}: {str(error).splitlines()[0]}") from error
        _refuse_partial(source, sorted(info["missing_keys"]), [])
        if info["mismatched_keys"] and not tolerant:
            raise _mismatched(source, sorted(info["mismatched_keys"])[0])
        return (model, info) if want_info else model

    def save_pretrained(  # type: ignore[override]
        self, folder: str | os.PathLike[str], state_dict: Any = None, **kwargs: Any
    ) -> None:
        """As in transformers; leaves out the base model's weights where ``config.weights`` is ``adapter``."""
        state = self.state_dict() if state_dict is None else state_dict
        config = cast(StethoLMConfig, self.config)
        with quiet():
            # Under our own names: transformers would write those that a part had in its own publisher's files.
            kwargs.setdefault("save_original_format", False)
            super().save_pretrained(folder, state_dict=own_state(config, state), **kwargs)


def local_folder(source: str | os.PathLike[str], storage: Any = None, holds: str = "config.json") -> str:
    """Where the checkpoint ``source`` lies on this machine; a hub id stays as it is.

    Args:
        source: folder, ``s3://`` URI or hub id.
        storage: where to fetch a URI from; default: from the settings.
        holds: the file by which to know a checkpoint.

    Raises:
        UserError: it is a path or URI and there is no checkpoint.
    """
    name = os.fspath(source)
    if name.startswith("s3://"):
        if storage is None:
            from stetholm.storage import default_storage

            storage = default_storage()
        name = str(storage.local_copy(name.rstrip("/")))
    folder = Path(name).expanduser()
    looks_like_path = isinstance(source, os.PathLike) or name.startswith((".", "/", "~")) or folder.exists()
    if looks_like_path and not (folder / holds).is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{source} holds a PEFT adapter alone: load its base, then model.load_adapter({str(source)!r})"
            )
        raise UserError(f"no checkpoint at {source}: there is no {holds}; give a folder or URI that has one")
    return str(folder) if looks_like_path else name


def read_config(folder: str | Path) -> StethoLMConfig:
    """The configuration of a checkpoint.

    Args:
        folder: folder or hub id.

    Raises:
        UserError: ``config.json`` is damaged, of another kind of model, or its parts disagree.
    """
    try:
        kind = StethoLMConfig.get_config_dict(folder)[0].get("model_type")
        if kind != StethoLMConfig.model_type:
            raise UserError(f"{folder} holds a model of type {kind!r}, not a StethoLM checkpoint: give one that does")
        return StethoLMConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"checkpoint {folder}: config.json cannot be used ({reason}): mend it or copy the folder again"
        ) from error


def on_disk(folder: str) -> Path:
    """The folder itself, or the local copy of a hub id."""
    if Path(folder).is_dir():
        return Path(folder)
    try:
        return Path(snapshot_download(folder, allow_patterns=_HUB_FILES))
    except (OSError, HfHubHTTPError) as error:
        raise UserError(f"cannot fetch checkpoint {folder} from the hub: {str(error).splitlines()[0]}") from error


def own_state(config: StethoLMConfig, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a checkpoint of this configuration holds of ``state``: never the reference copy of the projector."""
    state = {key: value for key, value in state.items() if "reference_projector." not in key}
    if config.weights == "adapter":
        return {key: value for key, value in state.items() if is_own(key)}
    return state


def is_own(key: str) -> bool:
    """Whether a weight is ours: encoder, projector or adapter, not the base language model."""
    bare = key.removeprefix("model.")
    return bare.startswith(("audio_tower.", "projector.")) or ".lora_" in bare


def _load_adapter(cls: Any, config: StethoLMConfig, folder: Path, kwargs: dict[str, Any]) -> Any:
    """Base language model by its id, then encoder, projector and adapters from ``folder``."""
    unknown = sorted(kwargs.keys() - _ADAPTER_KWARGS - _HARMLESS_KWARGS)
    if unknown:
        raise UserError(
            f"{', '.join(unknown)} cannot be used with a checkpoint that holds adapters only: "
            "merge it first (stetholm.model.load_checkpoint(..., merge=True)) and save it"
        )
    dtype = resolve_dtype(kwargs.get("dtype", kwargs.get("torch_dtype")), config)
    more = {key: kwargs[key] for key in ("attn_implementation",) if key in kwargs}
    base = load_language_model(cast(str, config.language_model), dtype, **more)
    _check_base(config, base, folder)
    from stetholm.model.modeling_stetholm import StethoLMForConditionalGeneration, StethoLMModel

    config.dtype = dtype
    with local_torch_dtype(dtype):  # made in float32, a projector of a 4B model would take 0.7 GB for a moment
        model: Any = StethoLMForConditionalGeneration(config, base)
    model.to(dtype)
    state = read_weights(folder)
    wanted = {key for key in own_state(config, model.state_dict())}
    _refuse_partial(folder, sorted(wanted - state.keys()), sorted(state.keys() - wanted))
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"checkpoint {folder}: config.json and weights disagree: {_first_mismatch(error)}") from error
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = str(folder)
    model.eval()
    return model.model if issubclass(cls, StethoLMModel) else model


def resolve_dtype(given: Any, config: StethoLMConfig) -> torch.dtype:
    """``given`` ("bfloat16", torch.bfloat16), else the checkpoint's own, else float32."""
    dtype = config.dtype if given in (None, "auto") else given
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."))
    return dtype or torch.float32


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or those that its index names.

    Raises:
        UserError: there are none, the index is damaged, or a file that it names is missing.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        raise UserError(f"checkpoint {folder} has no {WEIGHTS}: it was not written to its end; use an earlier one")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, INDEX, error) from error
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"checkpoint {folder} lacks {name}, which {INDEX} names: copy the folder again")
    return [folder / name for name in names]


def read_weights(folder: Path, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's safetensors files; keys of the headless class get their prefix.

    Args:
        folder: of the checkpoint.
        wanted: which keys to read; default: all.

    Raises:
        UserError: a file is missing or damaged.
    """
    state: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                saved = opened.keys()
                keys = {key: key if key.startswith(("model.", "lm_head.")) else f"model.{key}" for key in saved}
                state |= {name: opened.get_tensor(key) for key, name in keys.items() if wanted(name)}
        except SafetensorError as error:
            raise _damaged(folder, file.name, error) from error
    return state


def _check_files(folder: Path) -> None:
    """Refuse files that are missing or cut short, by name, before anything is loaded."""
    read_weights(folder, lambda key: False)


def _check_base(config: StethoLMConfig, base: PreTrainedModel, folder: Path) -> None:
    """An adapter made for one base must not be put on another."""
    text, found = config.text, base.config.get_text_config()
    for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
        if getattr(text, key, None) != getattr(found, key, None):
            raise UserError(
                f"checkpoint {folder} was made for a base with {key} {getattr(text, key, None)}, but "
                f"{config.language_model!r} has {getattr(found, key, None)}: point config.language_model to its base"
            )


def _refuse_partial(source: Any, missing: list[str], unknown: list[str]) -> None:
    for what, keys in (("lacks", missing), ("has unknown", unknown)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(
                f"checkpoint {source} {what} weights ({', '.join(keys[:3])}{more}): "
                "config.json and weights are not of one checkpoint; copy the folder again"
            )


def _damaged(source: Any, file: str, error: Exception) -> UserError:
    return UserError(f"checkpoint {source}: {file} is damaged or cut short ({error}): copy or train it again")


def _mismatched(source: Any, found: tuple[str, Any, Any]) -> UserError:
    key, saved, needed = found
    return UserError(
        f"checkpoint {source}: config.json and weights disagree: {key} is {tuple(saved)} in the weights, but the "
        f"configuration says {tuple(needed)}: copy the folder again, or mend config.json"
    )


def _first_mismatch(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if len(lines) > 1 else lines[0]
