"""Rows of the corpus stream to the tensors of one step, a function pair a stage.

``Prepare`` runs in the reading tasks (tokenisation), ``Collate`` in the training process (padding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stetholm.audio.degrade import Spectrogram, degrade
from stetholm.audio.features import N_FRAMES, N_MELS
from stetholm.corpus.stream import read_features
from stetholm.errors import UserError
from stetholm.model import StethoLMProcessor
from stetholm.model.processing_stetholm import stack_features
from stetholm.training.batches import Batch, Row

References = Mapping[tuple[int, str], tuple[float, float, float]]
"""Summed reference log-probabilities of chosen, rejected and chosen under degraded audio, by epoch and sample id."""


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

    def __init__(self, stage: str, processor: StethoLMProcessor, reference: References | None = None) -> None:
        self.stage, self.processor, self.reference = stage, processor, reference

    def __call__(self, rows: list[Row]) -> Batch:
        """Tensors ``input_ids``, ``attention_mask``, ``labels``, ``input_features`` and ``audio_index``.

        ``input_features`` (U, 64, 218) holds each distinct spectrogram once; ``audio_index`` (R,) says which one each
        recording of the prompts is. For dpo the rows are N chosen, N rejected, N chosen again, the last under degraded
        spectrograms; ``reference`` (3N,) is there if it has been computed ahead. For align ``responses`` and ``rows``
        (whose each recording is) come along.
        """
        examples = [self._example(row) for row in rows] or [self._blank()]
        if self.stage == "dpo":
            return self._preferences(rows, examples)
        batch = self._padded(examples, [sound for example in examples for sound in example["features"]])
        if self.stage == "align":
            batch["responses"] = [row["response"] for row in rows]
            counts = torch.tensor([len(example["features"]) for example in examples])
            batch["rows"] = torch.repeat_interleave(torch.arange(len(examples)), counts)
        return batch

    def _preferences(self, rows: list[Row], chosen: list[dict[str, Any]]) -> Batch:
        rejected = [self._example(row, "rejected_") for row in rows] or [self._blank()]
        clean = [sound for example in chosen for sound in example["features"]]
        degraded = [
            degrade(sound, row["sample_id"], row["epoch"])
            for row, example in zip(rows, chosen, strict=False)
            for sound in example["features"]
        ] or clean
        batch = self._padded(chosen + rejected + chosen, clean + clean + degraded)
        if self.reference is not None:
            known = [self.reference[row["epoch"], row["sample_id"]] for row in rows] or [(0.0, 0.0, 0.0)]
            batch["reference"] = torch.tensor(known).T.flatten()
        return batch

    def _padded(self, examples: list[dict[str, Any]], sounds: Sequence[Spectrogram]) -> Batch:
        """The tensors of text, and each distinct one of ``sounds`` once."""
        texts = [{key: example[key] for key in ("input_ids", "labels")} for example in examples]
        batch: Batch = dict(self.processor.collate(texts))
        places: dict[bytes, int] = {}
        index = [places.setdefault(sound.tobytes(), len(places)) for sound in sounds]
        distinct = [sounds[index.index(place)] for place in range(len(places))]
        batch["input_features"] = stack_features([np.stack(distinct)])
        batch["audio_index"] = torch.tensor(index)
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
