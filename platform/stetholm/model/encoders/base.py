"""What an audio encoder is, and the register of those there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

N_MELS = 64
N_FRAMES = 218


class AudioEncoder(nn.Module):
    """Pools one log-mel spectrogram to one vector.

    A subclass names its Hugging Face configuration class, sets ``width`` and implements ``forward``;
    ``@register("name")`` makes it known to ``model.audio_encoder``. One file an encoder. One whose network is a
    class of transformers names that too: then it can begin with pretrained weights (``model.audio_encoder_weights``).
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    network_class: ClassVar[type[PreTrainedModel] | None] = None
    """Class of :attr:`network`, if pretrained weights may be loaded."""
    width: int
    """Size of the pooled vector."""

    @classmethod
    def default_config(cls) -> PreTrainedConfig:
        """The published size of this encoder."""
        raise TypeError(f"{cls.__name__} does not define default_config")

    @staticmethod
    def check_config(config: Any) -> None:
        """Raise ValueError if the sizes in ``config`` disagree."""

    @staticmethod
    def pretrained_config(config: Any) -> PreTrainedConfig:
        """``config`` as pretrained weights bring it, changed to what this encoder expects."""
        checked: PreTrainedConfig = config
        return checked

    @property
    def network(self) -> nn.Module:
        """The part that pretrained weights fill."""
        raise TypeError(f"{type(self).__name__} does not define network")

    def adapt(self) -> None:
        """After pretrained weights have come into :attr:`network`: fit them to spectrograms in [0, 1]."""

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """``input_features`` (R, 64, 218) in [0, 1] -> (R, width)."""
        raise TypeError(f"{type(self).__name__} does not define forward")


ENCODERS: dict[str, type[AudioEncoder]] = {}
"""Encoder classes by the name used in ``model.audio_encoder``."""


def register(name: str) -> Callable[[type[AudioEncoder]], type[AudioEncoder]]:
    """Class decorator: make an encoder known under ``name``."""

    def add(encoder: type[AudioEncoder]) -> type[AudioEncoder]:
        ENCODERS[name] = encoder
        return encoder

    return add
