"""A weights file as a flat state dict; nothing in the file is run.

Torch files are read with ``weights_only=True, mmap=True``: the tensors stay on disk until they are copied.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stetholm.errors import UserError

CONTAINERS = ("state_dict", "model_state_dict", "audio_encoder_state_dict", "model")
"""Keys under which training scripts put a state dict: Lightning, the published code, AcuLa, others."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a key that DataParallel, torch.compile, FSDP and activation checkpointing put there."""

DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool}
)
"""Of weights and counters; others are of quantised models, which cannot be taken over."""

_SNIFFED = 512
_REFUSED_STARTS = {
    b"<": "is a web page, not weights: download the file itself",
    b"version https://git-lfs": "is a Git LFS pointer, not weights: fetch the file with git lfs pull",
    b"\x80": "is in torch's old format or a plain pickle: save the state dict again with torch 1.6 or newer",
}


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.pt``, ``.ckpt`` or ``.safetensors`` file by their keys, without wrappers' prefixes.

    Raises:
        UserError: there is no such file, it is damaged, holds code, or is no state dict.
    """
    with existing(file).open("rb") as opened:
        head = opened.read(_SNIFFED)
    if head.startswith(b"PK\x03\x04"):
        loaded = _load_torch(file)
    elif head[8:9] == b"{":
        loaded = _load_safetensors(file)
    else:
        raise _refused(file, _what_else(head))
    return _stripped(_state_dict(loaded, file), file)


def existing(file: Path) -> Path:
    """``file``.

    Raises:
        UserError: there is none.
    """
    if not file.is_file():
        raise _refused(file, "is a folder: name the weights file in it" if file.is_dir() else "does not exist")
    return file


def _what_else(head: bytes) -> str:
    if not head:
        return "is empty: download it again"
    start = head.lstrip()
    known = (reason for magic, reason in _REFUSED_STARTS.items() if start.startswith(magic))
    return next(known, "is neither a torch checkpoint nor a safetensors file")


def _load_safetensors(file: Path) -> Any:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise _refused(file, f"is damaged or cut short ({error}): download it again") from error


def _load_torch(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused anyhow
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged or hostile file may raise anything; all of it is the file's fault
        raise _refused(file, _reason(error)) from error


def _reason(error: Exception) -> str:
    """Why torch did not load a zip archive, in one line."""
    text = str(error)
    code = re.search(r"GLOBAL (\S+)", text) or re.search(r"whose module (\S+) is blocked", text)
    if code:
        return (
            f"holds Python objects besides tensors ({code[1]}), which may run code: it is not unpickled; "
            "ask its owner for the state dict alone (torch.save(model.state_dict(), …))"
        )
    if "TorchScript" in text:
        return "is a TorchScript program: it is not run; ask its owner for the state dict alone"
    told = re.search(r"Unsupported \w[^\n]*", text) or re.search(r"\S[^\n]*", text)
    return f"is damaged or cut short ({told[0][:120] if told else type(error).__name__}): download it again"


def _state_dict(loaded: Any, file: Path) -> dict[Any, torch.Tensor]:
    """The state dict in what a training script saved."""
    if isinstance(loaded, Mapping):
        inner = (loaded[name] for name in CONTAINERS if isinstance(loaded.get(name), Mapping))
        loaded = next(inner, loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise _refused(file, f"holds no state dict ({type(loaded).__name__}): expected names and tensors")
    odd = next((key for key, value in loaded.items() if not isinstance(key, str) or not _is_plain(value)), None)
    if odd is not None:
        raise _refused(file, f"holds no state dict: {odd!r} is no plain tensor ({type(loaded[odd]).__name__})")
    return dict(loaded)


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor of numbers with data, neither sparse nor quantised."""
    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
    return plain and value.dtype in DTYPES


def _stripped(state: dict[Any, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """The same with bare keys.

    Raises:
        UserError: two keys differ by a wrapper's prefix only.
    """
    bare: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in bare:
            raise _refused(file, f"holds {name} twice, with and without a wrapper's prefix: which one is meant?")
        bare[name] = value.detach()
    return bare


def _refused(file: Path, what: str) -> UserError:
    return UserError(f"import_weights.weights: {file} {what}")
