"""A plain language model that answers conversations, in Ray Data actors: a local judge, and the untouched model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy

from stetholm.completions import Message
from stetholm.corpus.datasource import quiet
from stetholm.errors import UserError
from stetholm.model.dtype import fast_dtype
from stetholm.model.language import load_language_model, load_tokenizer
from stetholm.roles import gpu_nodes


@dataclass(frozen=True)
class ChatPool:
    """Which model answers, and how.

    Attributes:
        model: hub id, folder, ``s3://`` URI or ``smollm2-135m``.
        max_new_tokens: of an answer.
        temperature: 0 is greedy.
        batch_size: conversations that one actor answers together.
        use_gpu: one GPU an actor.
        setting: that names the model, for messages.
    """

    model: str
    max_new_tokens: int
    temperature: float = 0.0
    batch_size: int = 8
    use_gpu: bool = False
    setting: str = "model.language_model"

    def size(self, conversations: int) -> int:
        """Actors, for what Ray has free; of a model on CPUs one, which takes all of its memory but once."""
        places = int(ray.available_resources().get("GPU", 1.0)) if self.use_gpu else 1
        return max(1, min(places, math.ceil(conversations / self.batch_size)))


class Chatter:
    """A member of the pool."""

    def __init__(self, pool: ChatPool, seed: int) -> None:
        self._pool, self._seed = pool, seed
        device = "cuda" if pool.use_gpu else "cpu"
        self._tokenizer = load_tokenizer(pool.model)
        self._model: Any = load_language_model(pool.model, fast_dtype(pool.use_gpu)).eval()
        # The end of a prompt that is too long is what asks for the answer.
        self._tokenizer.padding_side = self._tokenizer.truncation_side = "left"
        self._model.to(torch.device(device))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``place`` and ``messages`` (JSON) in; ``place`` and ``text`` out."""
        prompts = [self._prompt(json.loads(one)) for one in batch["messages"].to_pylist()]
        return pa.table({"place": batch["place"], "text": pa.array(self.answers(prompts), pa.string())})

    def _prompt(self, messages: Sequence[Message]) -> str:
        """In the model's own chat template; without one, as a plain dialogue."""
        if self._tokenizer.chat_template:
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        lines = [f"{one['role'].capitalize()}: {one['content']}" for one in messages]
        return "\n\n".join([*lines, "Assistant:"])

    @torch.inference_mode()
    def answers(self, prompts: Sequence[str]) -> list[str]:
        """Texts generated after ``prompts``, which hold their special tokens."""
        chosen = self._pool
        torch.manual_seed(self._seed)
        limit = getattr(self._model.config, "max_position_embeddings", None) or 10**6
        inputs = self._tokenizer(
            list(prompts),
            return_tensors="pt",
            padding=True,
            add_special_tokens=not self._tokenizer.chat_template,
            truncation=True,
            max_length=max(1, limit - chosen.max_new_tokens),
        ).to(self._model.device)
        drawn = chosen.temperature > 0
        sampling = {"do_sample": drawn, "temperature": chosen.temperature if drawn else None}
        output = self._model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=chosen.max_new_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
            top_p=None,
            top_k=None,
            **sampling,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._tokenizer.batch_decode(new, skip_special_tokens=True)]


def chat(conversations: Mapping[int, Sequence[Message]], pool: ChatPool, seed: int = 0) -> Iterator[tuple[int, str]]:
    """The next turn of each conversation, as they are made, by the place under which each was given.

    Raises:
        UserError: the model cannot be loaded.
    """
    if not conversations:
        return
    try:
        load_tokenizer(pool.model)  # here, where what is wrong can be told in one line
    except UserError as error:
        raise UserError(f"{pool.setting}: {error}") from error
    # Alike beside alike, so that a batch has little padding.
    ordered = sorted(conversations.items(), key=lambda item: (sum(len(m["content"]) for m in item[1]), item[0]))
    rows = [{"place": place, "messages": json.dumps(list(messages))} for place, messages in ordered]
    dataset = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / pool.batch_size)).map_batches(
        Chatter,
        fn_constructor_args=(pool, seed),
        batch_size=pool.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=pool.size(len(rows))),
        num_cpus=0 if pool.use_gpu else 1,
        num_gpus=1 if pool.use_gpu else 0,
        label_selector=gpu_nodes(pool.use_gpu),
    )
    tables: Iterable[pa.Table] = quiet(dataset).iter_batches(batch_size=None, batch_format="pyarrow")
    for table in tables:
        yield from zip(table["place"].to_pylist(), table["text"].to_pylist(), strict=True)
