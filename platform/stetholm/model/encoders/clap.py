"""CLAP's audio branch (HTSAT), with transformers' own class; projected 1024-d output as in CLAP 2023."""

from __future__ import annotations

import torch
from transformers import ClapAudioConfig, ClapAudioModelWithProjection

from stetholm.model.encoders.base import AudioEncoder, register


@register("clap")
class ClapEncoder(AudioEncoder):
    """HTSAT; it stretches the spectrogram to its own number of frames."""

    config_class = ClapAudioConfig

    def __init__(self, config: ClapAudioConfig) -> None:
        super().__init__()
        self.width = config.projection_dim
        self.clap = ClapAudioModelWithProjection(config)

    @classmethod
    def default_config(cls) -> ClapAudioConfig:
        """HTSAT-tiny with a projection to 1024."""
        return ClapAudioConfig(projection_dim=1024)

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """``input_features`` (R, 64, 218) -> (R, 1024)."""
        frames = input_features.transpose(1, 2).unsqueeze(1)
        return self.clap(input_features=frames).audio_embeds
