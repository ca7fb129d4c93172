"""Attention of an answer's tokens over what came before them: the paper's Figure 4, as numbers.

Token i of the answer is predicted by the position before it. Its row is that position's attention, averaged over the
heads of a layer: it sums to 1 over the positions before the token. One forward pass over prompt and answer gives all
rows; because attention is causal they are those of generating step by step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from stetholm.errors import UserError
from stetholm.model.explain.asking import Asked, Span, ask
from stetholm.model.processing_stetholm import StethoLMProcessor


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention of the G tokens of an answer over the T positions of prompt and answer, in L layers.

    Attributes:
        instruction: the question.
        answer: its answer's text.
        answer_ids: the answer's G tokens.
        tokens: all T tokens as text; the last G are the answer's.
        spans: the parts of the sequence; each position is in one, the answer's in the last.
        by_layer: (L, G, T) float32, the mean over the layer's heads. Row i is 0 from token i itself on.
        logps: (G,) log-probability of each token of the answer.
    """

    instruction: str
    answer: str
    answer_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    by_layer: NDArray[np.float32]
    logps: NDArray[np.float32]

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """(G, T), the mean over the layers, each counted alike."""
        return self.by_layer.mean(axis=0)

    @property
    def prompt_length(self) -> int:
        """P = T - G: where the answer begins."""
        return self.spans[-1].start

    @cached_property
    def shares(self) -> NDArray[np.float32]:
        """(G, spans): how much of each token's attention falls into each span; rows sum to 1."""
        return np.stack([self.weights[:, span.start : span.stop].sum(axis=1) for span in self.spans], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: all but ``by_layer``, whose shares by span stand as ``layer_shares`` (L, spans)."""
        layers = [self.by_layer[:, :, span.start : span.stop].sum(axis=2).mean(axis=1) for span in self.spans]
        return {
            "tokens": list(self.tokens),
            "spans": [{"name": span.name, "start": span.start, "stop": span.stop} for span in self.spans],
            "weights": np.round(self.weights, 5).tolist(),
            "shares": np.round(self.shares, 5).tolist(),
            "layer_shares": np.round(np.stack(layers, axis=1), 5).tolist(),
            "logps": np.round(self.logps, 5).tolist(),
        }


@torch.no_grad()
def attention(
    model: Any,
    processor: StethoLMProcessor,
    instruction: str,
    recordings: Any,
    *,
    answer: str | Sequence[int] | None = None,
    dataset: str | None = None,
    sampling_rate: int | None = None,
    max_new_tokens: int = 48,
    **generation: Any,
) -> Attention:
    """Where the tokens of an answer look.

    Works under any attention implementation and changes nothing in the model, so other threads may use it meanwhile.

    Args:
        model: in eval mode; its adapters may be merged or not, and PEFT may be wrapped around it.
        processor: the one that goes with it.
        instruction: the question.
        recordings: one or several, each a :class:`~stetholm.model.explain.clip.Clip`, a waveform (n,), a path or the
            bytes of an audio file; or none, as ``[]``.
        answer: text or token ids, whose tokens to explain; default: the model's own, generated.
        dataset: chooses the domain sentence.
        sampling_rate: of waveforms, in Hz.
        max_new_tokens: of a generated answer.
        **generation: how to generate it, as ``generate`` of transformers takes it; default: greedily.

    Raises:
        UserError: a recording cannot be used, the sequence is too long, or the language model has no attention to show.
        ValueError: the model is in training mode.
    """
    asked = ask(
        model, processor, instruction, recordings, answer=answer, dataset=dataset, sampling_rate=sampling_rate,
        max_new_tokens=max_new_tokens, generation=generation,
    )  # fmt: skip
    by_layer, logps = _forward(asked)
    return Attention(
        instruction, asked.answer, asked.answer_ids, asked.tokens, asked.spans, by_layer.cpu().numpy(),
        logps.cpu().numpy(),
    )  # fmt: skip


def _forward(asked: Asked) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (L, G, T) and log-probabilities (G,) of the answer's tokens."""
    model, ids = asked.model, torch.tensor([asked.ids], device=asked.model.device)
    embeds = model.model.embed(ids, audio_embeds=asked.prefix)
    decoder = eager_copy(model.model.language_model)
    outputs = decoder(
        inputs_embeds=embeds, attention_mask=torch.ones_like(ids), use_cache=False, output_attentions=True
    )
    layers = [weights for weights in outputs.attentions or () if weights is not None]
    if not layers:
        raise UserError(f"{type(decoder).__name__} gives no attention weights: its attention cannot be shown")
    predicting = slice(asked.prompt_length - 1, len(asked.ids) - 1)
    by_layer = torch.stack([weights[0, :, predicting].float().mean(dim=0) for weights in layers])
    logits = model.logits(outputs.last_hidden_state[0, predicting]).float()
    response = ids[0, asked.prompt_length :]
    return by_layer, torch.log_softmax(logits, dim=-1).gather(1, response[:, None])[:, 0]


def eager_copy(decoder: PreTrainedModel) -> PreTrainedModel:
    """``decoder`` with eager attention, which alone gives its weights: the same weights in memory, other modules.

    Switching the model itself would be wrong for another thread in its middle: under sdpa a causal mask may be left
    out, and eager attention without one sees the future. A copy needs no switching back either, whatever happens.
    """
    shared = [*decoder.parameters(), *decoder.buffers()]
    copied = copy.deepcopy(decoder, {id(tensor): tensor for tensor in shared})
    copied.set_attn_implementation("eager")
    return copied
