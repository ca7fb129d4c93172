"""Audio encoders by name: ``cola``, ``ast``, ``clap``. A fourth is one more file in this folder."""

import importlib
import pkgutil
from typing import Any

from stetholm.model.encoders.ast import AstEncoder
from stetholm.model.encoders.base import ENCODERS, AudioEncoder, register
from stetholm.model.encoders.clap import ClapEncoder
from stetholm.model.encoders.cola import ColaEncoder


def discover() -> None:
    """Import every file of this folder, so that what they register is known."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)


def encoder_class(name: str) -> type[AudioEncoder]:
    """The encoder called ``name``.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown audio encoder {name!r}: choose one of {', '.join(sorted(ENCODERS))}")
    return ENCODERS[name]


def build_encoder(name: str, config: Any) -> AudioEncoder:
    """A randomly initialised encoder ``name`` of the size that ``config`` gives."""
    factory: Any = encoder_class(name)
    encoder: AudioEncoder = factory(config)
    return encoder


discover()

__all__ = [
    "ENCODERS",
    "AstEncoder",
    "AudioEncoder",
    "ClapEncoder",
    "ColaEncoder",
    "build_encoder",
    "discover",
    "encoder_class",
    "register",
]
