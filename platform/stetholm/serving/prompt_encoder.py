"""Encoder, projector and token embeddings without the language model: from prompts to what an engine reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from stetholm.serving.prompts import Prompt, encode_recordings


class _EmbeddingsOnly(nn.Module):
    """Stands where a decoder was; its layers can be freed."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def get_input_embeddings(self) -> nn.Module:
        """As of the decoder."""
        return self.embeddings


class PromptEncoder:
    """Prompts to embeddings (tokens, d) on the CPU.

    Args:
        model: StethoLMForConditionalGeneration; loses its decoder's layers and its head.
        device: where the encoder runs.
    """

    def __init__(self, model: Any, device: str = "cpu") -> None:
        self._model = model.eval()
        inner = model.model
        inner.language_model = _EmbeddingsOnly(inner.language_model.get_input_embeddings())
        model.lm_head = nn.Identity()
        model.to(torch.device(device))

    @torch.inference_mode()
    def __call__(self, prompts: list[Prompt]) -> list[torch.Tensor]:
        """One tensor a prompt; recordings that several have are encoded once."""
        encode_recordings(self._model, prompts)
        return [self._embed(prompt) for prompt in prompts]

    @torch.inference_mode()
    def embed_tokens(self, ids: Sequence[int]) -> torch.Tensor:
        """Embeddings (tokens, d) of an answer's tokens."""
        embeddings = self._model.model.language_model.get_input_embeddings()
        return cast(torch.Tensor, embeddings(torch.tensor([*ids], device=self._model.device))).cpu().clone()

    def _embed(self, prompt: Prompt) -> torch.Tensor:
        ids = torch.tensor([prompt.ids], device=self._model.device)
        embeds = cast(torch.Tensor, self._model.model.embed(ids, audio_embeds=prompt.audio))
        prompt.audio = None  # it is in the embeddings now
        return embeds[0].cpu().clone()
