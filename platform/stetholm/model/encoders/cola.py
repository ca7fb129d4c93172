"""COLA, the encoder of OPERA-CE: a 1-to-3 convolution, then EfficientNet-B0 with pooled 1280-d output.

Padding is EfficientNet's "same" padding for even sizes, as in the checkpoints' own code. The size of the
network is in the configuration, so a small one for tests is the same class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import EfficientNetConfig, EfficientNetModel
from transformers import initialization as init
from transformers.models.efficientnet.modeling_efficientnet import round_filters

from stetholm.model.encoders.base import AudioEncoder, register
from stetholm.model.encoders.norm import FloatBatchNorm2d, float_norms

__all__ = ["ColaBackbone", "ColaEncoder", "FloatBatchNorm2d"]


class ColaBackbone(EfficientNetModel):
    """EfficientNet with an initialisation that trains from scratch, and float32 batch norms."""

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__(config)
        for norm in float_norms(self):
            # transformers leaves the expansion's at torch's default; all follow the configuration here.
            norm.momentum = config.batch_norm_momentum

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He for convolutions, gamma 1 for batch norm (transformers draws gamma near 0, which flattens the output)."""
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            init.normal_(module.weight, mean=0.0, std=(2.0 / fan_out) ** 0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            statistics: Any = module
            init.zeros_(statistics.running_mean)
            init.ones_(statistics.running_var)
            init.zeros_(statistics.num_batches_tracked)


@register("cola")
class ColaEncoder(AudioEncoder):
    """EfficientNet-B0 over the spectrogram as an image of three learned channels."""

    config_class = EfficientNetConfig
    network_class = EfficientNetModel

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.width = config.hidden_dim
        self.stem = nn.Conv2d(1, config.num_channels, kernel_size=3)
        self.efficientnet = ColaBackbone(config)

    @classmethod
    def default_config(cls) -> EfficientNetConfig:
        """EfficientNet-B0; momentum in torch's convention (transformers passes Keras' 0.99 to torch unchanged)."""
        return EfficientNetConfig(
            image_size=224,
            width_coefficient=1.0,
            depth_coefficient=1.0,
            hidden_dim=1280,
            batch_norm_momentum=0.1,
            drop_connect_rate=0.1,
        )

    @staticmethod
    def check_config(config: Any) -> None:
        """``hidden_dim`` must be the scaled top width, and the momentum must be meant for torch."""
        top = round_filters(config, 1280)
        if config.hidden_dim != top:
            raise ValueError(
                f"audio_config.hidden_dim is {config.hidden_dim}, but width_coefficient {config.width_coefficient} "
                f"makes it {top}: set hidden_dim to {top}"
            )
        if config.batch_norm_momentum > 0.5:
            raise ValueError(
                f"audio_config.batch_norm_momentum {config.batch_norm_momentum} is Keras' convention: "
                f"give torch's, {1 - config.batch_norm_momentum:.2f}"
            )

    @staticmethod
    def pretrained_config(config: Any) -> EfficientNetConfig:
        """Keras' momentum, as EfficientNet's checkpoints have it, becomes torch's."""
        if config.batch_norm_momentum > 0.5:
            config.batch_norm_momentum = round(1 - config.batch_norm_momentum, 6)
        checked: EfficientNetConfig = config
        return checked

    @property
    def network(self) -> nn.Module:
        """EfficientNet; the 1-to-3 convolution before it is not part of its checkpoints."""
        return self.efficientnet

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """``input_features`` (R, 64, 218) -> (R, 1280), the mean over the last map."""
        # channels_last: a fifth faster on CPU, and what tensor cores want.
        image = self.stem(input_features.unsqueeze(1)).contiguous(memory_format=torch.channels_last)
        return self.efficientnet(pixel_values=image).last_hidden_state.mean(dim=(2, 3))
