"""The writer on this cluster: a Hugging Face language model in Ray Data actors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stetholm.corpus.synthesis.store import Answer
from stetholm.corpus.synthesis.writers import Ask, Keep
from stetholm.settings import SynthesizeSettings

EMBEDDED = "smollm2-135m"


@dataclass(frozen=True)
class LocalModel:
    """What an actor loads, and how it answers."""

    name: str
    temperature: float
    max_new_tokens: int
    seed: int
    use_gpu: bool


class LocalWriter:
    """Asks models in actors; see :class:`stetholm.corpus.synthesis.writers.Writer`. Ray must be up."""

    free = False

    def __init__(self, settings: SynthesizeSettings, seed: int, use_gpu: bool) -> None:
        self.name = settings.model or EMBEDDED
        self.model = LocalModel(self.name, settings.temperature, settings.max_new_tokens, seed, use_gpu)
        self._batch = settings.batch_size

    def write(self, asks: Sequence[Ask], keep: Keep) -> dict[str, str]:
        """See :meth:`Writer.write`; a batch is kept as soon as it is there."""
        import ray.data
        from ray.data import ActorPoolStrategy

        from stetholm.corpus.datasource import quiet

        if not asks:
            return {}
        # Alike beside alike, so that a batch has little padding.
        order = sorted(asks, key=lambda ask: (sum(len(message["content"]) for message in ask.messages), ask.key))
        rows = [{"key": ask.key, "messages": json.dumps(ask.messages)} for ask in order]
        batches = math.ceil(len(rows) / self._batch)
        dataset = ray.data.from_items(rows, override_num_blocks=batches).map_batches(
            Answerer,
            fn_constructor_args=(self.model,),
            batch_size=self._batch,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(batches, _places(self.model.use_gpu))),
            num_cpus=0 if self.model.use_gpu else 1,
            num_gpus=1 if self.model.use_gpu else 0,
        )
        table: Any
        for table in quiet(dataset).iter_batches(batch_size=None, batch_format="pyarrow"):
            keep([Answer(**row) for row in table.to_pylist()])
        return {}


def _places(use_gpu: bool) -> int:
    """Models that fit. On one machine Ray's CPUs may be more than its cores, which a model needs for itself."""
    import ray

    free = ray.available_resources()
    if use_gpu:
        return max(1, int(free.get("GPU", 1)))
    alone = sum(bool(node["Alive"]) for node in ray.nodes()) == 1
    return max(1, int(min(free.get("CPU", 1), (os.cpu_count() or 1) if alone else math.inf)))


class Answerer:
    """A member of the pool: loads the model once, answers batches of questions."""

    def __init__(self, model: LocalModel) -> None:
        import torch

        from stetholm.model.language import load_language_model, load_tokenizer

        if not model.use_gpu:
            torch.set_num_threads(1)
        self._chosen = model
        self._tokenizer: Any = load_tokenizer(model.name)
        self._tokenizer.padding_side = "left"
        dtype = torch.bfloat16 if model.use_gpu else torch.float32
        self._model: Any = load_language_model(model.name, dtype).eval().to("cuda" if model.use_gpu else "cpu")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``key`` and ``messages`` (JSON) in; the fields of an :class:`Answer` out."""
        import torch

        keys = batch["key"].to_pylist()
        torch.manual_seed(int(keys[0], 16) % 2**32 ^ self._chosen.seed)
        prompts = [self._prompt(json.loads(text)) for text in batch["messages"].to_pylist()]
        inputs = self._tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = inputs.to(self._model.device)
        with torch.inference_mode():
            made = self._model.generate(**inputs, **self._sampling())[:, inputs["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(made, skip_special_tokens=True)
        return pa.table(
            {
                "key": keys,
                "text": [text.strip() for text in texts],
                "tokens_in": inputs["attention_mask"].sum(dim=1).tolist(),
                "tokens_out": (made != self._tokenizer.pad_token_id).sum(dim=1).tolist(),
                "refused": pa.array([None] * len(keys), pa.string()),
            }
        )

    def _prompt(self, messages: list[dict[str, str]]) -> str:
        if self._tokenizer.chat_template:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return "\n\n".join(message["content"] for message in messages) + "\n\n"

    def _sampling(self) -> dict[str, Any]:
        chosen = self._chosen
        return {
            "max_new_tokens": chosen.max_new_tokens,
            "pad_token_id": self._tokenizer.pad_token_id,
            **({"do_sample": True, "temperature": chosen.temperature} if chosen.temperature else {"do_sample": False}),
        }
