"""Rows of the corpus stream to the tensors of one step, a function pair a stage.

``Prepare`` runs in the reading tasks (tokenisation), ``Collate`` in the training process (padding).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stetholm.audio.degrade import degrade
from stetholm.audio.features import N_FRAMES, N_MELS
from stetholm.corpus.stream import read_features
from stetholm.errors import UserError
from stetholm.model import StethoLMProcessor
from stetholm.training.batches import Batch, Row


class Prepare:
    """Tokenises a row: ``input_ids`` and ``labels`` of its response (for dpo: of the chosen and the rejected one).

    Args:
        processor: the model's.
        max_tokens: longest prompt plus response.
        answers: column of each response by the name its ids get, e.g. {"": "response"}.
    """

    def __init__(self, processor: StethoLMProcessor, max_tokens: int, answers: dict[str, str]) -> None:
        self.processor, self.max_tokens, self.answers = processor, max_tokens, answers

    def __call__(self, row: Row) -> Row:
        """The new columns.

        Raises:
            UserError: a sample is longer than ``train.max_tokens``.
        """
        added: Row = {}
        for prefix, column in self.answers.items():
            pair = self.processor.encode_pair(
                row["instruction"], row[column], recordings=row["recordings"], dataset=row["dataset"]
            )
            if len(pair["input_ids"]) > self.max_tokens:
                raise UserError(
                    f"sample {row['sample_id']} ({row['dataset']}, {row['task']}) has {len(pair['input_ids'])} tokens, "
                    f"more than train.max_tokens={self.max_tokens}: raise it, or leave the sample out of the corpus"
                )
            added |= {f"{prefix}input_ids": pair["input_ids"], f"{prefix}labels": pair["labels"]}
        return added


def answers_of(stage: str, chosen: str = "candidate") -> dict[str, str]:
    """The columns that :class:`Prepare` tokenises for ``stage``; ``chosen`` is ``dpo.chosen``."""
    if stage != "dpo":
        return {"": "response"}
    return {"": "chosen" if chosen == "candidate" else "response", "rejected_": "rejected"}


class Collate:
    """Pads rows of ``stage`` to one step's tensors; no rows give a step that trains nothing."""

    def __init__(self, stage: str, processor: StethoLMProcessor) -> None:
        self.stage, self.processor = stage, processor

    def __call__(self, rows: list[Row]) -> Batch:
        """Tensors ``input_ids``, ``attention_mask``, ``labels`` and ``input_features`` (recordings, 64, 218).

        For dpo the rows are N chosen, N rejected, N chosen again, and the spectrograms N clean ones, then the same
        degraded. For align ``responses`` and ``rows`` (whose each recording is) come along.
        """
        examples = [self._example(row) for row in rows] or [self._blank()]
        if self.stage == "dpo":
            return self._preferences(rows, examples)
        batch: Batch = dict(self.processor.collate(examples))
        if self.stage == "align":
            batch["responses"] = [row["response"] for row in rows]
            counts = torch.tensor([len(example["features"]) for example in examples])
            batch["rows"] = torch.repeat_interleave(torch.arange(len(examples)), counts)
        return batch

    def _preferences(self, rows: list[Row], chosen: list[dict[str, Any]]) -> Batch:
        rejected = [self._example(row, "rejected_") for row in rows] or [self._blank()]
        batch = self.processor.collate(chosen + rejected + chosen)
        clean = [example["features"] for example in chosen]
        degraded = [
            np.stack([degrade(sound, row["sample_id"], row["epoch"]) for sound in sounds])
            for row, sounds in zip(rows, clean, strict=False)
        ] or clean
        batch["input_features"] = torch.from_numpy(np.concatenate(clean + degraded))
        return batch

    def _example(self, row: Row, prefix: str = "") -> dict[str, Any]:
        return {
            "input_ids": list(row[f"{prefix}input_ids"]),
            "labels": list(row[f"{prefix}labels"]),
            "features": read_features(row),
        }

    def _blank(self) -> dict[str, Any]:
        ids = self.processor.encode_prompt("", recordings=1)
        silence = np.zeros((1, N_MELS, N_FRAMES), dtype=np.float32)
        return {"input_ids": ids, "labels": [-100] * len(ids), "features": silence}
