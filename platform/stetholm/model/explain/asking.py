"""What both explanations begin with: the prompt in its parts, the recordings encoded once, and an answer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stetholm.errors import UserError
from stetholm.model.explain.clip import Clip
from stetholm.model.modeling_stetholm import StethoLMForConditionalGeneration
from stetholm.model.processing_stetholm import StethoLMProcessor

RESPONSE = "response"


@dataclass(frozen=True)
class Span:
    """Positions [start, stop) of a sequence: ``audio 1``, ``instruction``, ``response``, … (``prompt_parts``)."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Asked:
    """A question, its recordings and an answer.

    Attributes:
        model: the bare model, also of one wrapped by PEFT.
        clips: the recordings.
        prefix: (recordings, prefix_tokens, d), what the encoder and the projector make of them; None of none.
        ids: P tokens of the prompt and G of the answer, its end of sequence included.
        tokens: the same as text.
        spans: the parts of the sequence, none of them empty, in order; the last is the response.
        answer: its text.
    """

    model: StethoLMForConditionalGeneration
    clips: tuple[Clip, ...]
    prefix: torch.Tensor | None
    ids: list[int]
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    answer: str

    @property
    def prompt_length(self) -> int:
        """P."""
        return self.spans[-1].start

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The G tokens of the answer."""
        return tuple(self.ids[self.prompt_length :])


def ask(
    model: Any,
    processor: StethoLMProcessor,
    instruction: str,
    recordings: Any,
    *,
    answer: str | Sequence[int] | None,
    dataset: str | None,
    sampling_rate: int | None,
    max_new_tokens: int,
    generation: Mapping[str, Any],
) -> Asked:
    """Put a question; without a given ``answer`` (text or token ids), generate one.

    Raises:
        UserError: a recording cannot be used, or prompt and answer are longer than the model's context.
        ValueError: the model is in training mode.
    """
    bare = unwrap(model)
    clips = as_clips(recordings, sampling_rate)
    parts = processor.prompt_parts(instruction, len(clips), dataset)
    prompt = [token for _, ids in parts for token in ids]
    if not prompt:
        raise UserError("there is nothing to explain: give an instruction or a recording")
    prefix = bare.encode_audio(log_mels(clips).to(bare.device)) if clips else None
    if answer is None:
        response = _generated(bare, prompt, prefix, max_new_tokens, generation)
    elif isinstance(answer, str):
        response = processor.encode_pair(instruction, answer, len(clips), dataset)["input_ids"][len(prompt) :]
    else:
        response = [int(token) for token in answer]
    if not response:
        raise UserError("the answer to explain has no tokens")
    _check_length(bare, len(prompt) + len(response))
    spans = _spans([*parts, (RESPONSE, response)])
    text = processor.tokenizer.decode(response, skip_special_tokens=True).strip()
    ids = prompt + response
    return Asked(bare, clips, prefix, ids, _texts(processor, ids, spans), spans, text)


def unwrap(model: Any) -> StethoLMForConditionalGeneration:
    """The StethoLM model itself, out of a ``PeftModel`` too (its adapters stay at work).

    Raises:
        ValueError: it is another, or in training mode: dropout would be part of the explanation.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(bare, StethoLMForConditionalGeneration):
        raise ValueError(f"a {type(bare).__name__} cannot be explained: give a StethoLMForConditionalGeneration")
    if bare.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    return bare


def as_clips(recordings: Any, sampling_rate: int | None) -> tuple[Clip, ...]:
    """One recording or several as clips; each is anything that :meth:`Clip.of` takes."""
    single = isinstance(recordings, (str, bytes, os.PathLike, Clip, np.ndarray))
    return tuple(Clip.of(recording, sampling_rate) for recording in ([recordings] if single else recordings))


def log_mels(clips: Sequence[Clip]) -> torch.Tensor:
    """(recordings, 64, 218) float32."""
    return torch.from_numpy(np.stack([clip.log_mel for clip in clips]).astype(np.float32, copy=False))


def _generated(
    model: StethoLMForConditionalGeneration,
    prompt: list[int],
    prefix: torch.Tensor | None,
    max_new_tokens: int,
    generation: Mapping[str, Any],
) -> list[int]:
    """The tokens of the model's answer, up to and with the first end of sequence."""
    ids = torch.tensor([prompt], device=model.device)
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), audio_embeds=prefix, max_new_tokens=max_new_tokens, **generation
    )
    tokens: list[int] = made[0, len(prompt) :].tolist()
    ends = model.generation_config.eos_token_id
    stops = set(ends) if isinstance(ends, list) else {ends}
    length = next((place + 1 for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:length]


def _check_length(model: StethoLMForConditionalGeneration, length: int) -> None:
    context = getattr(model.config.text, "max_position_embeddings", None)
    if context is not None and length > context:
        raise UserError(f"prompt and answer have {length} tokens, but the model takes {context}: shorten the question")


def _spans(parts: Sequence[tuple[str, Sequence[int]]]) -> tuple[Span, ...]:
    spans, start = [], 0
    for name, ids in parts:
        if ids:
            spans.append(Span(name, start, start + len(ids)))
        start += len(ids)
    return tuple(spans)


def _texts(processor: StethoLMProcessor, ids: Sequence[int], spans: Sequence[Span]) -> tuple[str, ...]:
    """Each token as text; a recording's are numbered, as ``audio 1.3``."""
    texts = [processor.tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]
    for span in spans:
        if span.name.startswith("audio "):
            texts[span.start : span.stop] = [f"{span.name}.{n + 1}" for n in range(span.stop - span.start)]
    return tuple(texts)
