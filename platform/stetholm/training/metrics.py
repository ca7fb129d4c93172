"""The numbers of training: what the steps between two log lines did, how fast, and at which cost.

Counting happens where a batch is made, on the CPU, so that no step waits for the device. Ranks bring their counts
together only when a line is logged: see :class:`stetholm.training.monitor.Monitor`.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch

from stetholm.training.batches import Batch, Row


@dataclass(frozen=True)
class Counts:
    """What a batch holds, or several together.

    Attributes:
        samples: rows of the corpus (for dpo: pairs).
        recordings: spectrograms (for dpo: clean and degraded ones).
        tokens: real tokens, prompt and response; not padding, nor what a rank without samples trains on.
        places: tokens with padding.
        scored: tokens that carry loss.
        squares: sum over sequences of their length in real tokens, squared: what attention costs.
    """

    samples: int = 0
    recordings: int = 0
    tokens: int = 0
    places: int = 0
    scored: int = 0
    squares: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


def count(batch: Batch, samples: int) -> Counts:
    """What ``batch``, whose tensors are on the CPU, holds; ``samples`` rows went into it."""
    mask = batch["attention_mask"]
    if not samples:  # a rank that only keeps step
        return Counts(places=mask.numel())
    lengths = mask.sum(dim=1)
    return Counts(
        samples=samples,
        recordings=len(batch["input_features"]),
        tokens=int(lengths.sum()),
        places=mask.numel(),
        scored=int((batch["labels"] != -100).sum()),
        squares=int((lengths * lengths).sum()),
    )


class Counted:
    """A collate function that adds ``counts`` to its batches."""

    def __init__(self, collate: Callable[[list[Row]], Batch]) -> None:
        self._collate = collate

    def __call__(self, rows: list[Row]) -> Batch:
        """The batch of ``rows``, with its :class:`Counts`."""
        batch = self._collate(rows)
        return batch | {"counts": count(batch, len(rows))}


@dataclass(frozen=True)
class Interval:
    """What one rank did between two log lines.

    Attributes:
        counts: of all steps together.
        steps: how many.
        loss: mean over them of the rank's loss.
        seconds: wall-clock time, everything in it (a checkpoint's writing too).
        wait: of these, waiting for data.
        flops: model FLOPs that the rank did; see ``training.flops``.
        peak_flops: FLOP/s that its device can do at most; 0 if not known.
        memory: peak resident memory of the process so far, bytes.
        gpu_memory: peak memory allocated on the rank's GPU so far, bytes; 0 without one.
        terms: means of what the stage notes: the loss's terms, accuracies.
    """

    counts: Counts
    steps: int
    loss: float
    seconds: float
    wait: float
    flops: float
    peak_flops: float
    memory: int
    gpu_memory: int
    terms: dict[str, float]


def summary(parts: Sequence[Interval]) -> dict[str, float]:
    """The numbers of an interval over all ranks, by the names they have in logs, trackers and the dashboard.

    ``loss`` and terms are means over ranks; ``samples_per_s`` and ``tokens_per_s`` (real tokens) are sums; ``padding``
    and ``data_wait`` are shares from 0 to 1, ``mfu`` (model FLOPs utilisation) likewise and left out where no peak is
    known; ``memory_gb`` and ``gpu_memory_gb`` are those of the rank that has most, in 2**30 bytes.
    """
    total = sum((part.counts for part in parts), Counts())
    seconds = max(max(part.seconds for part in parts), 1e-9)
    numbers = {
        "loss": _mean([part.loss for part in parts]),
        "samples_per_s": total.samples / seconds,
        "tokens_per_s": total.tokens / seconds,
        "padding": 1 - total.tokens / total.places if total.places else 0.0,
        "data_wait": min(max(part.wait for part in parts) / seconds, 1.0),
        "memory_gb": max(part.memory for part in parts) / 2**30,
    }
    if gpu := max(part.gpu_memory for part in parts):
        numbers["gpu_memory_gb"] = gpu / 2**30
    if possible := sum(part.peak_flops for part in parts):
        numbers["mfu"] = sum(part.flops for part in parts) / (possible * seconds)
    return numbers | {name: _mean([part.terms[name] for part in parts if name in part.terms]) for name in _names(parts)}


def _names(parts: Sequence[Interval]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part.terms))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def peak_memory() -> int:
    """Most resident memory that this process has had so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_gpu_memory() -> int:
    """Most memory that tensors have had on this process's GPU so far, bytes; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
