"""The published system's model, written down from its description (arXiv 2603.00355 and the authors' README).

Encoder and prefix projector in fp32; four prefix embeddings are put before the text's; LoRA stays beside the language
model's weights; texts are padded on the right with EOS (to the longest of a batch, the least there can be).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import EfficientNetModel

from stetholm.model import StethoLMForConditionalGeneration
from stetholm.model.language import load_language_model
from stetholm.settings import ModelSettings

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Embedded(NamedTuple):
    """Prefix and text as a language model takes them: ``embeds`` (N, 4 + T, d) and ``mask`` (N, 4 + T)."""

    embeds: Tensor
    mask: Tensor


class PublishedModel(nn.Module):
    """COLA, prefix projector and a language model with LoRA, fp32.

    Args:
        ours: begins with its encoder's and its projector's weights, copied.
        settings: names the language model and LoRA's size.
    """

    def __init__(self, ours: StethoLMForConditionalGeneration, settings: ModelSettings) -> None:
        super().__init__()
        tower, size = ours.model.audio_tower, cast(Any, ours.config.audio_config)
        self.stem = nn.Conv2d(1, size.num_channels, kernel_size=3)
        self.network = EfficientNetModel(size)
        self.projector = copy.deepcopy(ours.model.projector)
        self.stem.load_state_dict(cast(nn.Module, tower.stem).state_dict())
        self.network.load_state_dict(cast(nn.Module, tower.efficientnet).state_dict(), strict=False)
        lora = LoraConfig(
            r=settings.lora.r,
            lora_alpha=settings.lora.alpha,
            lora_dropout=settings.lora.dropout,
            target_modules=list(TARGETS),
            task_type="CAUSAL_LM",
        )
        self.lm: Any = get_peft_model(load_language_model(settings.language_model, torch.float32), lora)

    def embed(self, clips: Tensor, ids: Tensor, mask: Tensor) -> Embedded:
        """Put the prefix of each recording before its text.

        Args:
            clips: (N, 64, 218) log-mel.
            ids: (N, T) padded token ids.
            mask: (N, T) 1 where they are no padding.
        """
        prefix = self.projector(self.network(pixel_values=self.stem(clips.unsqueeze(1))).pooler_output)
        embeds = torch.cat([prefix, self.lm.get_input_embeddings()(ids)], dim=1)
        return Embedded(embeds, torch.cat([torch.ones(prefix.shape[:2], dtype=torch.long), mask], dim=1))

    def logits(self, clips: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(N, 4 + T, vocabulary): of every position."""
        embedded = self.embed(clips, ids, mask)
        logits: Tensor = self.lm(inputs_embeds=embedded.embeds, attention_mask=embedded.mask).logits
        return logits


def padded(rows: Sequence[Sequence[int]], eos: int) -> tuple[Tensor, Tensor]:
    """Ids (N, T) filled with EOS on the right, and the mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[eos] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask
