"""What ends a run that has gone wrong, before a checkpoint of it is written: each with one line that says what to do.

A loss or gradient that is not a number ruins the weights in the step itself, so it is found at the latest before the
next checkpoint; on a CPU, where looking costs nothing, in the step itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stetholm.errors import UserError
from stetholm.training.history import Record
from stetholm.training.metrics import Counts
from stetholm.training.ranks import rank, world_size

Sample = tuple[int, str]
"""Epoch and sample id."""

SHOWN = 32
"""Sample ids that a message names; batches are seldom larger."""
SMOOTHING = 0.8
"""Of the loss over log lines, for divergence: five lines or so."""
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class Watched:
    """Mixed into a trainer, before it: knows each step's loss, and says which batch does not fit into memory."""

    counts = Counts()
    """What the step's batch held."""
    loss: Tensor | None = None
    """Of the step, on its device."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's own.

        Raises:
            UserError: the batch does not fit into memory.
        """
        self.counts = inputs.pop("counts", Counts())
        with fitting(inputs.get("samples", ()), self.counts):
            loss: Tensor = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self.loss = loss.detach()
        return loss


@contextmanager
def fitting(samples: Sequence[Sample], counts: Counts) -> Iterator[None]:
    """Turn the failure to get memory for a step into an error that names the batch.

    Raises:
        UserError: there was not enough memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _is_memory(error):
            raise
        where = "GPU memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
        raise UserError(
            f"a batch of {_plural(counts.samples, 'sample')} with {counts.places:,} tokens ({counts.tokens:,} without "
            f"padding) does not fit into {where} ({_first_sentence(error)}): {_smaller(counts)}. {_named(samples)}"
        ) from error


def _smaller(counts: Counts) -> str:
    checkpointing = "train.gradient_checkpointing=true"
    if counts.samples < 2:
        return f"set {checkpointing}, or leave the sample out of the corpus"
    return (
        f"set train.tokens_per_batch to less than {counts.places:,} or train.batch_size to less than {counts.samples}, "
        f"or {checkpointing}"
    )


def _is_memory(error: Exception) -> bool:
    memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return memory or any(words in str(error).lower() for words in _NO_MEMORY)


def _first_sentence(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if any(words in line.lower() for words in _NO_MEMORY)]
    text = " ".join((lines or [str(error) or type(error).__name__])[0].split())
    return text.rpartition("] ")[2].split(". GPU ")[0][:160]


class NonFinite:
    """Finds the first step whose loss or gradient is not a number, without waiting for the device in each step."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Tensor, Any, Sequence[Sample]]] = []

    def see(self, step: int, loss: Tensor, norm: Any, samples: Sequence[Sample]) -> None:
        """Keep what ``step`` came to: its loss, gradient norm (a number, a tensor or None) and samples."""
        self._steps.append((step, loss, norm, samples))

    def check(self, good: int, rate: float) -> list[float]:
        """Losses of the steps seen since the last check.

        Args:
            good: step of the last checkpoint.
            rate: train.learning_rate.

        Raises:
            UserError: one of the steps went wrong.
        """
        seen, self._steps = self._steps, []
        if not seen:
            return []
        losses: list[float] = torch.stack([loss.float() for _, loss, _, _ in seen]).cpu().tolist()
        for loss, (step, _, norm, samples) in zip(losses, seen, strict=True):
            norm = 0.0 if norm is None else float(norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
                raise UserError(
                    f"{what} at step {step}. {_last_good(good)}. Lower train.learning_rate (now {rate:.2g}) or "
                    f"train.max_grad_norm, or look at the samples. {_named(samples)}"
                )
        return losses


class Divergence:
    """Ends a run whose loss has been far above its best for long.

    The loss is smoothed over log lines (an exponential mean, about five lines).

    Args:
        margin: how far above, in the loss's unit (nats); None: never end a run.
        steps: for how many steps without a break.
        history: training records of a run that goes on.
    """

    def __init__(self, margin: float | None, steps: int, history: Iterable[Record] = ()) -> None:
        self._margin, self._for = margin, steps
        self._smooth, self._best, self._since = math.nan, math.inf, -1
        for record in history:
            self._follow(record["step"], record["loss"])

    def check(self, step: int, loss: float, good: int, rate: float) -> None:
        """Follow the logged ``loss``; ``good`` and ``rate`` as in :meth:`NonFinite.check`.

        Raises:
            UserError: the run has diverged.
        """
        self._follow(step, loss)
        if self._margin is not None and self._since >= 0 and step - self._since >= self._for:
            raise UserError(
                f"the loss has diverged: {self._smooth:.3g} (smoothed) at step {step}, more than "
                f"train.divergence={self._margin:g} above its best of {self._best:.3g} since step {self._since}. "
                f"{_last_good(good)}; it may be later than what you want to go on from. "
                f"Lower train.learning_rate (now {rate:.2g}); train.divergence=null never ends a run"
            )

    def _follow(self, step: int, loss: float) -> None:
        first = math.isnan(self._smooth)
        self._smooth = loss if first else SMOOTHING * self._smooth + (1 - SMOOTHING) * loss
        self._best = min(self._best, self._smooth)
        far = self._margin is not None and self._smooth > self._best + self._margin
        self._since = (self._since if self._since >= 0 else step) if far else -1


def require_finite(weights: dict[str, Tensor], step: int) -> None:
    """Refuse to save weights that are not numbers.

    Raises:
        UserError: one of them is not.
    """
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise UserError(
                f"{name} is not finite after step {step}: no checkpoint is written. "
                "Lower train.learning_rate, or set train.precision=fp32"
            )


def _last_good(step: int) -> str:
    if not step:
        return "There is no checkpoint yet"
    return f"The last good checkpoint is that of step {step}: the same run.name goes on from it"


def _named(samples: Sequence[Sample]) -> str:
    who = f" of worker {rank()}" if world_size() > 1 else ""
    if not samples:
        return f"There were no samples{who} in the step"
    ids = ", ".join(sample for _, sample in samples[:SHOWN])
    more = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
    return f"Samples{who}: {ids}{more}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
