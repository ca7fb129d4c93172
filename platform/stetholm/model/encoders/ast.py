"""Audio Spectrogram Transformer, with transformers' own class; pooled 768-d output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import ASTConfig, ASTModel

from stetholm.model.encoders.base import N_FRAMES, N_MELS, AudioEncoder, register


@register("ast")
class AstEncoder(AudioEncoder):
    """AST over the spectrogram, stretched to the size that the configuration names if that is another.

    Pretrained weights come with the size they were trained at (AudioSet's: 1024 frames of 128 bands), so that patches
    and positions mean what they meant there.
    """

    config_class = ASTConfig
    network_class = ASTModel

    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.width = config.hidden_size
        self.size = (config.max_length, config.num_mel_bins)
        self.ast = ASTModel(config)

    @classmethod
    def default_config(cls) -> ASTConfig:
        """AST-base on our own 218 frames of 64 bands."""
        return ASTConfig(max_length=N_FRAMES, num_mel_bins=N_MELS)

    @staticmethod
    def check_config(config: Any) -> None:
        """A patch must fit into the spectrogram."""
        if min(config.max_length, config.num_mel_bins) < config.patch_size:
            raise ValueError(
                f"audio_config.patch_size {config.patch_size} is larger than the spectrogram "
                f"({config.num_mel_bins} bands, {config.max_length} frames)"
            )

    @property
    def network(self) -> nn.Module:
        """The transformer."""
        return self.ast

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """``input_features`` (R, 64, 218) -> (R, 768). AST expects about zero mean and standard deviation 0.5."""
        frames = input_features.transpose(1, 2)
        if frames.shape[1:] != self.size:
            frames = F.interpolate(frames.unsqueeze(1), size=self.size, mode="bilinear", align_corners=False).squeeze(1)
        return self.ast(input_values=frames * 2 - 1).pooler_output
