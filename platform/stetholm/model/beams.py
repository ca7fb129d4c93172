"""Generation that does no work twice when a prompt has several answers or beams.

A prompt is computed once, not once a beam; keys and values are written into buffers with room, not copied for
every token; when beams change places, only what they generated moves; and the best continuations are found block by
block. Nothing of this changes a result: the tests compare it with transformers' own way.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, GenerationMixin
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ROOM = 64
"""Tokens by which a cache buffer grows."""
BLOCK = 512
"""Scores of which the best stands for all while the best continuations are sought."""
GROUPED = "grouped_sdpa"
"""Name of :func:`grouped_attention` in transformers' register."""


class RoomyLayer(DynamicLayer):
    """Keys and values (rows, heads, tokens, size) of one layer, at the beginning of buffers with room for more."""

    def __init__(self) -> None:
        super().__init__()
        self._shared = 0
        """Tokens at the beginning that are the same in all rows which may change places."""
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to the buffers; all keys and values so far, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old, new = self.get_seq_length(), key_states.shape[-2]
        if self._moved() or old + new > self._buffers[0].shape[-2]:
            self._grow(key_states, value_states, old)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, old : old + new] = states
        self._view(old + new)
        return cast(torch.Tensor, self.keys), cast(torch.Tensor, self.values)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times; what is there now is the same in these rows."""
        super().batch_repeat_interleave(repeats)
        self._shared = self.get_seq_length()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes row ``beam_idx[i]``, which is of the same prompt: what they share stays where it is."""
        length = self.get_seq_length()
        for states in (self.keys, self.values):
            if states is not None and length > self._shared:
                own = states[:, :, self._shared :]
                own.copy_(own.index_select(0, beam_idx.to(own.device)))

    def _moved(self) -> bool:
        """Whether the keys are not in our buffers (yet, or since another method of the class put new ones in place)."""
        return not self._buffers or cast(torch.Tensor, self.keys).data_ptr() != self._buffers[0].data_ptr()

    def _grow(self, keys: torch.Tensor, values: torch.Tensor, old: int) -> None:
        held = (self.keys, self.values)
        self._buffers = []
        for states, before in zip((keys, values), held, strict=True):
            rows, heads, new, size = states.shape
            buffer = states.new_empty(rows, heads, old + new + ROOM, size)
            if before is not None and old:
                buffer[:, :, :old] = before
            self._buffers.append(buffer)

    def _view(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


class SharedPrompts(GenerationMixin):
    """Mixin: ``generate`` as above, for a model with recordings in its prompts."""

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> Any:
        """As in transformers; growing layers get buffers with room."""
        done = cast(Any, super())._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        cache = model_kwargs.get("past_key_values")
        if type(cache) is DynamicCache and not cache.offloading:
            cache.layers = [
                RoomyLayer() if type(layer) is DynamicLayer and not layer.is_initialized else layer
                for layer in cache.layers
            ]
        return done

    def _prefill(
        self,
        input_ids: torch.Tensor,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> Any:
        """One forward pass over each distinct prompt; its keys, values and logits are then repeated."""
        prefill = cast(Any, super())._prefill
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        cache = model_kwargs.get("past_key_values")
        if copies == 1 or cache is None or cache.get_seq_length() or generation_config.prefill_chunk_size:
            return prefill(input_ids, generation_config, model_kwargs, is_first_iteration)
        once = dict(model_kwargs)
        for key, value in model_kwargs.items():
            if key != "audio_embeds" and isinstance(value, torch.Tensor) and len(value) == len(input_ids):
                once[key] = value[::copies]
        once["audio_embeds"] = self._first_recordings(input_ids, model_kwargs.get("audio_embeds"), copies)
        outputs = prefill(input_ids[::copies], generation_config, once, is_first_iteration)
        outputs.past_key_values.batch_repeat_interleave(copies)
        outputs.logits = outputs.logits.repeat_interleave(copies, dim=0)
        return outputs

    def _first_recordings(self, input_ids: torch.Tensor, audio: torch.Tensor | None, copies: int) -> Any:
        """The recordings (R, k, d) of every ``copies``-th row alone."""
        if audio is None:
            return None
        config = cast(Any, self).config
        blocks = (input_ids == config.audio_token_id).sum(dim=1) // config.prefix_tokens
        first = torch.arange(len(input_ids), device=blocks.device) % copies == 0
        return audio[first.repeat_interleave(blocks).to(audio.device)]

    def _get_top_k_continuations(
        self,
        accumulated_log_probs: torch.Tensor,
        running_sequences: torch.Tensor,
        running_beam_indices: torch.Tensor,
        cur_len: int,
        decoder_prompt_len: int,
        do_sample: bool,
        beams_to_keep: int,
        num_beams: int,
        batch_size: int,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, which is handed the few scores among which the best are."""
        parent = cast(Any, super())._get_top_k_continuations
        given = (running_sequences, running_beam_indices, cur_len, decoder_prompt_len, do_sample)
        counts = (beams_to_keep, num_beams, batch_size)
        if do_sample:
            return parent(accumulated_log_probs, *given, *counts, **kwargs)
        values, places = top_k(accumulated_log_probs, beams_to_keep)
        vocabulary = accumulated_log_probs.shape[-1] // num_beams
        beams, tokens = places // vocabulary, places % vocabulary
        sequences = self._gather_beams(running_sequences, beams)
        indices = self._gather_beams(running_beam_indices, beams)
        sequences[:, :, cur_len] = tokens
        offset = torch.arange(batch_size, device=beams.device).view(-1, 1) * num_beams
        indices[:, :, cur_len - decoder_prompt_len] = (beams + offset).to(indices.dtype)
        return values, sequences, indices


def top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``scores.topk(k)`` of each row (rows, n), quick for a small k among many.

    The k best lie in the k blocks with the best maxima (and what is left over by the blocks).
    """
    rows, n = scores.shape
    blocks = n // BLOCK
    if blocks <= k:
        return tuple(scores.topk(k))  # type: ignore[return-value]
    whole = scores[:, : blocks * BLOCK].view(rows, blocks, BLOCK)
    best = whole.amax(dim=-1).topk(k).indices
    inside = torch.arange(BLOCK, device=scores.device)
    places = (best.unsqueeze(-1) * BLOCK + inside).flatten(1)
    rest = torch.arange(blocks * BLOCK, n, device=scores.device).expand(rows, -1)
    places = torch.cat([places, rest], dim=1)
    values, found = scores.gather(1, places).topk(k)
    return values, places.gather(1, found)


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Torch's attention; for one new token, query heads that share keys become several queries of one head.

    So the keys and values of grouped-query attention need not be repeated, which transformers does under a mask.
    Shapes: ``query`` (rows, heads, tokens, size), ``key`` and ``value`` (rows, key heads, all tokens, size).
    """
    rows, heads, tokens, size = query.shape
    shared = key.shape[1]
    special = any(kwargs.get(key) is not None for key in ("position_bias", "cache"))
    if special or tokens != 1 or heads == shared or (attention_mask is not None and attention_mask.shape[1] != 1):
        how = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    grouped = query.reshape(rows, shared, heads // shared, size)
    mixed = nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return mixed.reshape(rows, 1, heads, size), None


def use_grouped_attention(language_model: Any) -> None:
    """Let a decoder that uses torch's attention use :func:`grouped_attention`; leave any other as it is."""
    if language_model.config._attn_implementation == "sdpa":
        language_model.set_attn_implementation(GROUPED)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
