"""The processor: instructions and recordings to token ids and log-mel spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from stetholm.errors import UserError
from stetholm.model.encoders.base import N_FRAMES, N_MELS
from stetholm.model.language import AUDIO_TOKEN, prepare_tokenizer, token_id
from stetholm.model.loading import local_folder
from stetholm.model.prompts import domain_sentence
from stetholm.model.response import IGNORE

_SLOT = "stetholm-user-text-slot"
TEMPLATE_VALUES = {"date_string": "26 Jul 2024", "enable_thinking": False}
"""What chat templates may ask for. Llama 3.2 writes the day's date into its system turn unless given one: a prompt
must be the same in training and a year later. Qwen3 opens its answer with an empty thought where thinking is off."""


_QUESTIONS_KEPT = 4096


class StethoLMProcessor(ProcessorMixin):
    """Tokenizer + log-mel front end + prompt.

    Args:
        tokenizer: the language model's; gets the placeholder ``<|audio|>`` and a pad token if it lacks them.
        prefix_tokens: placeholders a recording.
        prompt_style: ``plain``: recordings, then the domain sentence and the instruction (published);
            ``chat``: the same inside the language model's chat template.
        prompt_marker: special tokens before the text of a plain prompt (MedGemma: ``<end_of_image>``).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prefix_tokens: int = 4,
        prompt_style: str = "plain",
        prompt_marker: str = "",
        chat_template: str | None = None,
    ) -> None:
        self._questions: dict[str, list[int]] = {}
        self.prefix_tokens = prefix_tokens
        self.prompt_style = prompt_style
        self.prompt_marker = prompt_marker
        super().__init__(prepare_tokenizer(tokenizer), chat_template=chat_template)
        self.audio_token_id = token_id(tokenizer, AUDIO_TOKEN)
        if prompt_style == "chat" and not tokenizer.chat_template:
            raise UserError("model.prompt_style is chat, but the language model has no chat template: use plain")

    @classmethod
    def from_pretrained(cls, source: Any, **kwargs: Any) -> StethoLMProcessor:  # type: ignore[override]
        """A processor from a folder, an ``s3://`` URI or a hub id."""
        processor: StethoLMProcessor = super().from_pretrained(
            local_folder(source, holds="processor_config.json"), **kwargs
        )
        return processor

    def to_dict(self) -> dict[str, Any]:
        """What ``processor_config.json`` holds; the placeholder's id is the tokenizer's to know."""
        fields: dict[str, Any] = super().to_dict()
        fields.pop("audio_token_id", None)
        return fields

    @staticmethod
    def domain_sentence(dataset: str | None, instruction: str) -> str:
        """The published sentence before an instruction; see :func:`stetholm.model.prompts.domain_sentence`."""
        return domain_sentence(dataset, instruction)

    def encode_prompt(self, instruction: str, recordings: int, dataset: str | None = None) -> list[int]:
        """Token ids of the prompt, with one block of placeholders a recording.

        Special tokens written in ``instruction`` stay plain text.
        """
        return [token for _, ids in self.prompt_parts(instruction, recordings, dataset) for token in ids]

    def prompt_parts(
        self, instruction: str, recordings: int, dataset: str | None = None
    ) -> list[tuple[str, list[int]]]:
        """The prompt's token ids in named parts, in order; joined they are :meth:`encode_prompt`.

        ``audio 1``, ``audio 2`` …: the recordings; ``start``: BOS; ``marker``: ``prompt_marker``; ``template``: what a
        chat template puts before and after; ``instruction``: the domain sentence and the instruction. A part may be
        empty.
        """
        sentence = domain_sentence(dataset, instruction) if recordings or dataset else ""
        text = ("instruction", self._question_ids(f"{sentence} {instruction}".strip()))
        block = [self.audio_token_id] * self.prefix_tokens
        audio = [(f"audio {number}", block) for number in range(1, recordings + 1)]
        if self.prompt_style == "plain":
            marker = self._special_ids(self.prompt_marker)
            return [*audio, ("start", self._start_ids), ("marker", marker), text]
        before, after = self._template
        return [("template", before), *audio, text, ("template", after)]

    def encode_pair(
        self, instruction: str, response: str, recordings: int, dataset: str | None = None
    ) -> dict[str, list[int]]:
        """``input_ids`` of prompt, response and EOS; ``labels`` the same with -100 on the prompt."""
        prompt = self.encode_prompt(instruction, recordings, dataset)
        answer = [*self._plain_ids(response), self.tokenizer.eos_token_id]
        return {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer}

    def collate(self, examples: Sequence[dict[str, Any]], side: str = "right") -> dict[str, torch.Tensor]:
        """Pad examples (``input_ids``, perhaps ``labels``, ``features`` (R, 64, 218)) to a batch.

        Returns:
            ``input_ids``, ``attention_mask`` (N, T), ``labels`` (N, T) if the examples have them, and
            ``input_features`` (all recordings, 64, 218), row after row.

        Raises:
            ValueError: no examples, an unknown side, or features of another shape.
        """
        if side not in ("left", "right") or not examples:
            raise ValueError("collate needs examples, and side 'left' or 'right'")
        ids = [list(example["input_ids"]) for example in examples]
        batch = {
            "input_ids": pad(ids, int(self.tokenizer.pad_token_id), side),
            "attention_mask": pad([[1] * len(row) for row in ids], 0, side),
        }
        if all("labels" in example for example in examples):
            batch["labels"] = pad([list(example["labels"]) for example in examples], IGNORE, side)
        batch["input_features"] = stack_features([example.get("features") for example in examples])
        return batch

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        dataset: str | None = None,
        padding_side: str = "left",
        **kwargs: Any,
    ) -> BatchFeature:
        """Prompts and recordings as tensors for ``generate``.

        Args:
            text: an instruction, or several.
            audio: for one instruction its recordings; for several, an item each: a recording or a list of them.
                A recording is a waveform (n,), a path, or the bytes of a WAV, FLAC, OGG or MP3 file.
            sampling_rate: of the waveforms, in Hz.
            dataset: chooses the domain sentence.
            padding_side: ``left`` for generation.
            **kwargs: ``return_tensors="pt"`` and ``padding`` are taken for the Auto classes' sake.

        Returns:
            ``input_ids``, ``attention_mask``, ``input_features`` (recordings, 64, 218).

        Raises:
            UserError: a recording cannot be used, or the numbers of texts and recordings disagree.
        """
        _refuse_unknown(kwargs)
        groups = _by_prompt(text, audio)
        features = [self._features(group, sampling_rate) for group in groups]
        if text is None:
            return BatchFeature({"input_features": stack_features(features)})
        texts = [text] if isinstance(text, str) else list(text)
        examples = [
            {"input_ids": self.encode_prompt(one, len(group), dataset), "features": group}
            for one, group in zip(texts, features, strict=True)
        ]
        return BatchFeature(self.collate(examples, padding_side))

    def _features(self, recordings: Sequence[Any], rate: int | None) -> NDArray[np.float32]:
        from stetholm.model.sound import clip_features

        clips = [clip_features(recording, rate) for recording in recordings]
        return np.stack(clips) if clips else np.zeros((0, N_MELS, N_FRAMES), np.float32)

    def _question_ids(self, text: str) -> list[int]:
        """Of a question: many recordings are asked the same one, so the latest are kept."""
        if text not in self._questions:
            if len(self._questions) >= _QUESTIONS_KEPT:
                self._questions.clear()
            self._questions[text] = self._plain_ids(text)
        return self._questions[text]

    def _plain_ids(self, text: str) -> list[int]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        backend.encode_special_tokens = (
            True  # as split_special_tokens sets it; the tokenizer's own call takes twice as long
        )
        return list(backend.encode(text, add_special_tokens=False).ids)

    def _special_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    @cached_property
    def _start_ids(self) -> list[int]:
        """BOS where this tokenizer puts one before a text."""
        ids, bos = self.tokenizer("a")["input_ids"], self.tokenizer.bos_token_id
        return [bos] if bos is not None and ids[:1] == [bos] else []

    @cached_property
    def _template(self) -> tuple[list[int], list[int]]:
        """Token ids of the chat template before and after the user's text.

        Raises:
            UserError: the template cannot be used with one text of a user.
        """
        try:
            chat = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": _SLOT}], tokenize=False, add_generation_prompt=True, **TEMPLATE_VALUES
            )
        except (TemplateError, TypeError) as error:
            raise _unusable(f"fails on a user's text ({error})") from error
        if chat.count(_SLOT) != 1:
            raise _unusable(f"writes a user's text {chat.count(_SLOT)} times")
        before, after = chat.split(_SLOT)
        return self._special_ids(before), self._special_ids(after)


def _unusable(why: str) -> UserError:
    return UserError(f"model.prompt_style is chat, but the chat template of the language model {why}: use plain")


def pad(rows: Sequence[Sequence[int]], value: int, side: str) -> torch.Tensor:
    """(N, longest) int64, filled with ``value`` on ``side``."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    joined = [[*more, *row] if side == "left" else [*row, *more] for row, more in zip(rows, fill, strict=True)]
    return torch.tensor(joined, dtype=torch.long)


def stack_features(features: Sequence[Any]) -> torch.Tensor:
    """All recordings of a batch, (R, 64, 218) float32; R may be 0.

    Raises:
        ValueError: an item is not (recordings, 64, 218), or not finite.
    """
    arrays = [np.asarray(one, np.float32) for one in features if one is not None]
    for array in arrays:
        if array.ndim != 3 or array.shape[1:] != (N_MELS, N_FRAMES):
            raise ValueError(f"features have shape {array.shape}: expected (recordings, {N_MELS}, {N_FRAMES})")
        if not np.isfinite(array).all():
            raise ValueError("features are not finite (NaN or infinity): mend the recordings that they were made from")
    stacked = np.concatenate([np.zeros((0, N_MELS, N_FRAMES), np.float32), *arrays])
    return torch.from_numpy(stacked)


def _by_prompt(text: Any, audio: Any) -> list[list[Any]]:
    """The recordings of each prompt."""
    items: list[Any] = []
    if audio is not None:
        items = list(audio) if isinstance(audio, (list, tuple)) else [audio]
    if text is None or isinstance(text, str):
        return [items]
    if audio is None:
        return [[] for _ in text]
    if len(items) != len(text):
        raise UserError(f"{len(text)} texts but {len(items)} items in audio: give one recording, or a list, a text")
    return [list(item) if isinstance(item, (list, tuple)) else [item] for item in items]


def _refuse_unknown(kwargs: dict[str, Any]) -> None:
    tensors = kwargs.pop("return_tensors", "pt")
    kwargs.pop("padding", None)
    if tensors != "pt" or kwargs:
        what = ", ".join(sorted(kwargs)) or f"return_tensors={tensors!r}"
        raise TypeError(f"StethoLMProcessor does not take {what}")


__all__ = ["StethoLMProcessor", "pad", "stack_features"]
