"""From a request to what a language model reads: token ids and prefix embeddings; shared by every engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stetholm.serving.engine import Request, RequestError


@dataclass
class Prompt:
    """A request whose text is tokenised; ``audio`` is filled once, however many answers it asks for."""

    request: Request
    ids: list[int]
    max_new_tokens: int
    audio: torch.Tensor | None = None
    """Prefix embeddings (recordings, prefix_tokens, d)."""


def encode_prompt(processor: Any, request: Request, context: int) -> Prompt:
    """Tokenise a request and fit its budget into a context of ``context`` tokens.

    Raises:
        RequestError: the prompt leaves no room for an answer.
    """
    ids = processor.encode_prompt(request.instruction, len(request.features), request.dataset)
    room = context - len(ids)
    if room < 1:
        raise RequestError(f"the prompt has {len(ids)} tokens; the model's context holds {context}")
    return Prompt(request, ids, min(request.sampling.max_new_tokens, room))


def encode_recordings(model: Any, prompts: list[Prompt]) -> None:
    """Run the audio encoder once over all recordings of ``prompts`` that it has not seen yet."""
    todo = [prompt for prompt in prompts if prompt.audio is None and len(prompt.request.features)]
    if not todo:
        return
    # Questions about the same recordings share one array or hold copies of it: either way it is encoded once.
    keys = [hashlib.blake2b(prompt.request.features.tobytes(), digest_size=16).digest() for prompt in todo]
    distinct = dict(zip(keys, (prompt.request.features for prompt in todo), strict=True))
    features = torch.from_numpy(np.concatenate(list(distinct.values())))
    prefixes = model.encode_audio(features.to(model.device, model.dtype))
    parts = prefixes.split([len(array) for array in distinct.values()])
    encoded = dict(zip(distinct, parts, strict=True))
    for key, prompt in zip(keys, todo, strict=True):
        prompt.audio = encoded[key]


def batch_prompts(processor: Any, rows: Sequence[tuple[Prompt, Sequence[int]]]) -> dict[str, Any]:
    """Left-padded ``input_ids`` and ``attention_mask`` (rows, longest), and the rows' ``audio_embeds`` in order.

    A row is a prompt and the tokens that its answer has already. A prompt may stand in several rows (n answers); its
    recordings are then repeated, not encoded again.
    """
    batch = processor.collate([{"input_ids": [*prompt.ids, *begun]} for prompt, begun in rows], side="left")
    audio = [prompt.audio for prompt, _ in rows if prompt.audio is not None]
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "audio_embeds": torch.cat(audio) if audio else None,
    }


def eos_ids(generation: Any, processor: Any) -> frozenset[int]:
    """Every id that ends an answer: the tokenizer's and those of the model's ``generation_config``."""
    configured = generation.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(id_) for id_ in [*ids, processor.tokenizer.eos_token_id] if id_ is not None)
