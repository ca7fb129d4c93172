"""CLAP's audio branch (HTSAT), with transformers' own class; projected 1024-d output as in CLAP 2023."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import ClapAudioConfig, ClapAudioModelWithProjection

from stetholm.model.encoders.base import N_FRAMES, N_MELS, AudioEncoder, register
from stetholm.model.encoders.norm import float_norms

DECIBELS = 80.0
"""What [0, 1] spans in our front end."""
LOUDEST = 20.0
"""Where we put the loudest cell on the decibel scale that pretrained weights know (our choice)."""


@register("clap")
class ClapEncoder(AudioEncoder):
    """HTSAT; it stretches the spectrogram to its own number of frames."""

    config_class = ClapAudioConfig
    network_class = ClapAudioModelWithProjection

    def __init__(self, config: ClapAudioConfig) -> None:
        super().__init__()
        self.width = config.projection_dim
        self.clap = ClapAudioModelWithProjection(config)
        float_norms(self.clap)

    @classmethod
    def default_config(cls) -> ClapAudioConfig:
        """HTSAT-tiny with a projection to 1024."""
        return ClapAudioConfig(projection_dim=1024)

    @staticmethod
    def check_config(config: Any) -> None:
        """The spectrogram must fit in, and there is one of it a recording: nothing to fuse."""
        if config.enable_fusion:
            raise ValueError("audio_config.enable_fusion: fused CLAP reads four crops of a clip; take an unfused one")
        frames = config.spec_size * (config.spec_size // config.num_mel_bins)
        if config.num_mel_bins != N_MELS or frames < N_FRAMES:
            raise ValueError(
                f"audio_config takes {frames} frames of {config.num_mel_bins} bands, "
                f"but the spectrogram has {N_FRAMES} of {N_MELS}: choose another spec_size or num_mel_bins"
            )

    @property
    def network(self) -> nn.Module:
        """The audio branch with its projection."""
        return self.clap

    @torch.no_grad()
    def adapt(self) -> None:
        """Tell the input's batch norm that [0, 1] stands for decibels.

        CLAP was trained on decibels y, normalised by their statistics; ours are y = 80 (x - 1) + 20. Norm of y with
        mean m and variance v = norm of x with mean (m + 60) / 80 and variance v / 80².
        """
        norm = self.clap.audio_model.audio_encoder.batch_norm
        mean: Any = norm.running_mean
        variance: Any = norm.running_var
        mean.add_(DECIBELS - LOUDEST).div_(DECIBELS)
        variance.add_(norm.eps).div_(DECIBELS**2).sub_(norm.eps).clamp_(min=0)

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """``input_features`` (R, 64, 218) -> (R, 1024)."""
        frames = input_features.transpose(1, 2).unsqueeze(1)
        return self.clap(input_features=frames).audio_embeds
