"""How likely a model finds given answers: length-averaged log-probabilities, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stetholm.errors import UserError
from stetholm.model.explain.asking import unwrap
from stetholm.model.processing_stetholm import StethoLMProcessor


@dataclass(frozen=True, eq=False)
class Answered:
    """A question, what is heard with it, and an answer.

    Attributes:
        instruction: the question.
        answer: its text; the end of sequence is added.
        log_mels: (recordings, 64, 218); of no recording (0, 64, 218).
        dataset: chooses the domain sentence.
    """

    instruction: str
    answer: str
    log_mels: NDArray[np.float32]
    dataset: str | None = None


@torch.inference_mode()
def answer_logps(
    model: Any, processor: StethoLMProcessor, rows: Sequence[Answered], batch_size: int = 16
) -> list[float]:
    """lp(y | a) of each row: the mean over the answer's tokens, its end of sequence included, in nats.

    Args:
        model: in eval mode.
        processor: the one that goes with it.
        rows: those alike in length are computed together.
        batch_size: how many together.

    Raises:
        UserError: a question with its answer is longer than the model's context.
        ValueError: the model is in training mode.
    """
    bare = unwrap(model)
    encoded = [_encode(processor, row) for row in rows]
    context = getattr(bare.config.text, "max_position_embeddings", None)
    longest = max((len(row["input_ids"]) for row in encoded), default=0)
    if context is not None and longest > context:
        raise UserError(f"prompt and answer have {longest} tokens, but the model takes {context}: shorten the question")
    order = sorted(range(len(rows)), key=lambda place: len(encoded[place]["input_ids"]))
    found = np.zeros(len(rows))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = processor.collate([encoded[place] for place in places])
        sums, counts = bare.response_logps(**{name: value.to(bare.device) for name, value in batch.items()})
        found[places] = (sums / counts).double().cpu().numpy()
    return [float(value) for value in found]


def _encode(processor: StethoLMProcessor, row: Answered) -> dict[str, Any]:
    encoded = processor.encode_pair(row.instruction, row.answer, len(row.log_mels), row.dataset)
    return {**encoded, "features": row.log_mels}
