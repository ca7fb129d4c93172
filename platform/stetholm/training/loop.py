"""What happens around the Trainer's steps: resuming, the ledger, checkpoints, stopping. What is seen: ``monitor``."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stetholm.corpus.ledger import Ledger
from stetholm.model import StethoLMProcessor
from stetholm.model.checkpoint import own_keys, save_checkpoint
from stetholm.training.guard import require_finite
from stetholm.training.leaving import Votes
from stetholm.training.memory import trim
from stetholm.training.ranks import from_all, is_first, rank
from stetholm.training.state import Progress, gather_moments, gather_weights, restore_moments, save_training_state

Report = Callable[[dict[str, Any], Path | None], None]
"""Hands a checkpoint folder (rank 0) or None (the others) and numbers to whoever keeps them; all ranks call it.
``left`` is among them where training leaves before its end."""


class TrainingLoop(TrainerCallback):
    """Keeps a run resumable.

    Args:
        trainer: a stage's trainer with its batches in use.
        processor: saved with each checkpoint.
        progress: where the run stands; step > 0 goes on from there.
        resume: optimizer moments and scheduler state of that point, or None.
        every: steps between checkpoints.
        finish: writes the files that are not the trainer's (settings, lineage, model card), the last first.
        report: see :data:`Report`.
        votes: says whether the ranks leave before the end; default: they do not.
    """

    def __init__(
        self,
        trainer: Any,
        processor: StethoLMProcessor,
        progress: Progress,
        resume: tuple[dict[str, torch.Tensor], dict[str, Any]] | None,
        every: int,
        finish: Callable[[Path, Progress], None],
        report: Report,
        votes: Votes | None = None,
    ) -> None:
        self.trainer, self.processor, self.progress = trainer, processor, progress
        self._resume, self._every, self._finish, self._report = resume, every, finish, report
        self._ledger = Ledger.from_json(progress.ledger) if progress.ledger else Ledger()
        self._fresh = Ledger()
        self._saved_step = progress.step
        self._started, self._waits = 0.0, 0
        self._votes = votes or Votes()
        self.left = False
        """Whether the ranks have left before the end."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the checkpoint: step, optimizer, schedule."""
        if self._resume is not None:
            moments, scheduler = self._resume
            restore_moments(self.trainer.model_wrapped, moments, self.progress.step)
            state.global_step = self.progress.step
            schedule = self.trainer.lr_scheduler
            # Where it stands, not how high: who goes on after a run went wrong has lowered train.learning_rate.
            schedule.load_state_dict({**scheduler, "base_lrs": schedule.base_lrs})
            # It would set the rates with its next step only, and this one would be made with those of the first.
            shapes = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            schedule._last_lr = [base * shape(schedule.last_epoch) for base, shape in shapes]
            for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
                group["lr"] = rate

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seed dropout by (seed, step, rank), so that a resumed run draws what an uninterrupted one draws."""
        self._started = self._started or time.monotonic()  # with the first batch: the stream's start is no step
        torch.manual_seed(hash((args.seed, state.global_step, rank())) % 2**63)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note what the step consumed; save when it is time; stop when no rank has samples left."""
        for epoch, sample_id in self.trainer.consumed:
            self._fresh.add(epoch, [sample_id])
        self.progress.step = state.global_step
        last = self.trainer.batches.at_end or state.global_step >= args.max_steps
        self.left = self._votes.leave and not last
        if last or self.left:
            control.should_training_stop = True
        elif state.global_step % self._every == 0:
            self.save()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save what the last steps did."""
        if self.progress.step > self._saved_step:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of this step; a collective call."""
        self._count()
        trim()
        model, engine = self.trainer.accelerator.unwrap_model(self.trainer.model), self.trainer.model_wrapped
        folder = Path(mkdtemp(prefix="stetholm-checkpoint-")) if is_first() else None
        # One after the other: both at once would be the step's peak of memory.
        weights = gather_weights(model, own_keys(model))
        if folder is not None:
            require_finite(weights, self.progress.step)
            save_checkpoint(model, self.processor, folder, state_dict=weights)
        del weights
        moments = gather_moments(engine)
        if folder is not None:
            save_training_state(folder, self.progress, moments, self.trainer.lr_scheduler.state_dict())
            self._finish(folder, self.progress)
        del moments
        self._saved_step = self.progress.step
        left = {"left": True} if self.left else {}
        self._report({"step": self.progress.step, "loss": self.progress.loss_last, **left}, folder)
        trim()

    def _count(self) -> None:
        """Bring the ranks' ledgers together, and the time up to date."""
        now = time.monotonic()
        self.progress.seconds += now - self._started
        self._started = now
        batches = self.trainer.batches
        waits, self._waits = batches.waits[self._waits :], len(batches.waits)
        parts = from_all((self._fresh.to_json(), waits, batches.start_seconds))
        for ledger, _, _ in parts:
            fresh = Ledger.from_json(ledger)
            self.progress.samples += len(fresh)
            self._ledger.merge(fresh)
        # Ranks step together: each step waits for the rank that waits longest.
        steps = zip_longest(*(waits for _, waits, _ in parts), fillvalue=0.0)
        self.progress.wait_seconds += sum(max(step) for step in steps)
        self.progress.start_seconds = max(started for _, _, started in parts)
        self._fresh = Ledger()
        self.progress.ledger = self._ledger.to_json()
