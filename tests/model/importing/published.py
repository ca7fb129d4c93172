"""The published model, plainly re-stated: independent of ``stetholm.model``, its parts named as in the published files.

EfficientNet is ``efficientnet_pytorch``'s, LoRA is PEFT's; the forward pass is written out.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from efficientnet_pytorch import EfficientNet
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from tests.model.tiny import TEXT_CONFIGS

PREFIX = 4
RANK, ALPHA = 4, 32


class Encoder(nn.Module):
    """Of OPERA-CE: a convolution from one channel to three, then EfficientNet-B0 with pooled output."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn1 = nn.Conv2d(1, 3, kernel_size=3)
        self.efficientnet = EfficientNet.from_name("efficientnet-b0", include_top=False, drop_connect_rate=0.1)

    def forward(self, spectrograms: torch.Tensor) -> torch.Tensor:
        """(R, 64, 218) -> (R, 1280)."""
        pooled: torch.Tensor = self.efficientnet(self.cnn1(spectrograms[:, None]))
        return pooled.flatten(1)


class Projector(nn.Module):
    """Three linear layers, Tanh and dropout between."""

    def __init__(self, d: int) -> None:
        super().__init__()
        a, b, c = d * PREFIX // 2, d * PREFIX, d * PREFIX
        self.model = nn.Sequential(
            *(nn.Linear(1280, a), nn.Tanh(), nn.Dropout(0.5)),
            *(nn.Linear(a, b), nn.Tanh(), nn.Dropout(0.5)),
            nn.Linear(b, c),
        )


class Published(nn.Module):
    """Encoder, projector, language model (with LoRA if ``lora``)."""

    def __init__(self, base: Any, lora: bool) -> None:
        super().__init__()
        self.audio_encoder = live_encoder()
        wrapped = base
        if lora:
            config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
            wrapped = get_peft_model(base, config)
        self.head: Any = None
        if isinstance(base, Gemma3ForConditionalGeneration):
            self.medgemma_full = wrapped
            self.lm = base.model.language_model
            self.lm_head = base.lm_head
        else:
            self.lm = wrapped
        self.d = self.lm.get_input_embeddings().embedding_dim
        self.prefix_project = Projector(self.d)
        self.eval()

    @torch.no_grad()
    def forward(self, spectrograms: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits (N, 4 + T, vocabulary) of one recording and ``tokens`` (N, T), right-padded as ``mask`` says."""
        prefix = self.prefix_project.model(self.audio_encoder(spectrograms)).view(len(tokens), PREFIX, self.d)
        text = self.lm.get_input_embeddings()(tokens)
        mask = torch.cat([torch.ones(len(tokens), PREFIX, dtype=mask.dtype), mask], dim=1)
        output = self.lm(inputs_embeds=torch.cat([prefix, text], dim=1), attention_mask=mask)
        logits: torch.Tensor = self.lm_head(output.last_hidden_state) if hasattr(self, "lm_head") else output.logits
        return logits


def live_encoder(seed: int = 0) -> Encoder:
    """An encoder with random weights and with batch norms that all differ from what they start as."""
    return copy.deepcopy(_encoder(seed))


@cache
def _encoder(seed: int) -> Encoder:
    torch.manual_seed(seed)
    encoder = Encoder().train()
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.8, 1.2)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = 1.0
    # So that features are of the order of 1, for which an absolute bound means something.
    nn.init.uniform_(encoder.efficientnet._bn1.weight, 0.2, 0.4)
    with torch.no_grad():
        encoder(spectrograms(32, seed))
        for norm in norms:
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None
                statistic *= torch.empty_like(statistic).uniform_(0.9, 1.1)
    return encoder.eval()


def spectrograms(recordings: int, seed: int) -> torch.Tensor:
    """(recordings, 64, 218) in [0, 1], each band of another strength."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.rand(recordings, 64, 218, generator=drawn) * torch.rand(recordings, 64, 1, generator=drawn)


def tiny_medgemma() -> Gemma3ForConditionalGeneration:
    """MedGemma's class, text and vision, in small."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**TEXT_CONFIGS["gemma3"]().to_dict(), "final_logit_softcapping": None}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28}))


def enliven(model: Published) -> Published:
    """Give LoRA's B, which starts at zero, some values, and the prefix about the size of text embeddings."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        last: Any = model.prefix_project.model[-1]
        last.weight.mul_(5)
    return model
