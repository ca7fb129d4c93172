"""What is seen of a stage while it trains: a line now and then, the curve, trackers; and the end of a run gone wrong.

Its own log lines stand in for the Trainer's: one exchange between the ranks a line, nothing in the steps between. A
line is due every ``train.log_every`` steps, at the first and the last step, and at each checkpoint, so that the curve
of a run that goes on is that of a run that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stetholm import progress as terminal
from stetholm.settings import AlignSettings, DpoSettings, TrainSettings
from stetholm.training.flops import Costs, device_peak, step_costs
from stetholm.training.guard import Divergence, NonFinite
from stetholm.training.history import History, Record
from stetholm.training.job import StageJob
from stetholm.training.metrics import Counts, Interval, peak_gpu_memory, peak_memory, summary
from stetholm.training.precision import frozen_dtype
from stetholm.training.ranks import from_all, is_first
from stetholm.training.state import Progress
from stetholm.training.trackers import Trackers, place_of
from stetholm.training.validation import Validated

UNLOGGED = {"num_tokens"}
"""Of what TRL notes: tokens since the start of the process, which ``tokens_per_s`` says better."""


class Monitor(TrainerCallback):
    """Logs a stage's steps; add it to the trainer before the callback that saves. Use it as a context manager.

    Args:
        name: of the stage.
        trainer: with its batches in use.
        progress: where the run stands; the losses in it are kept up to date.
        train: the stage's settings.
        history: records of a run that goes on.
        costs: FLOPs of a step.
        peak: FLOP/s of this rank's device at most; 0 if not known.
        trackers: opened for the first rank; None for the others.
        validated: new records of checkpoints' evaluations, asked for at each checkpoint.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        name: str,
        trainer: Any,
        progress: Progress,
        train: TrainSettings,
        history: History,
        costs: Costs,
        peak: float,
        trackers: Trackers | None = None,
        validated: Callable[[], Sequence[Record]] = list,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._trainer, self._progress, self._train = trainer, progress, train
        self._costs, self._peak, self._trackers, self._clock = costs, peak, trackers, clock
        self._validated = validated
        self.history = history
        self._finite = NonFinite()
        self._divergence = Divergence(train.divergence, train.divergence_steps, history.training())
        self._line = terminal.Progress(name, progress.steps) if is_first() else None
        self._start, self._first_step = math.nan, progress.step
        self._since, self._waits, self._rate = math.nan, 0, 0.0
        self._good = progress.step
        self._begin_interval()

    def __enter__(self) -> Monitor:
        if self._line is not None:
            self._line.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.__exit__(kind, error, trace)
        if self._trackers is not None:
            self._trackers.close()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock with the first batch: the start of the stream is no step."""
        self._rate = max(map(float, self._trainer.lr_scheduler.get_last_lr()))
        if math.isnan(self._since):
            self._since = self._start = self._clock()
            self._waits = len(self._trainer.batches.waits)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the step into account; log if it is time."""
        trainer, step = self._trainer, state.global_step
        norm = gradient_norm(trainer.model_wrapped)
        self._finite.see(step, trainer.loss, norm, trainer.consumed)
        self._counts += trainer.counts
        self._flops += self._costs.of(trainer.counts)
        self._steps += 1
        last = trainer.batches.at_end or step >= args.max_steps
        saving = step % self._train.checkpoint_every == 0
        due = last or saving or step == 1 or step % self._train.log_every == 0
        if due or trainer.loss.device.type == "cpu":
            self._loss += sum(self._finite.check(self._good, self._train.learning_rate))
        if due:
            self._log(step, norm)
        if saving:  # which comes next, as nothing is wrong
            self._good = step

    def write(self, folder: Path, step: int) -> None:
        """Put the curve up to ``step`` into the checkpoint ``folder``; its picture is drawn when it is uploaded."""
        for record in self._validated():
            self._keep(record)
        self.history.write(folder, step)
        if self._trackers is not None:
            self._trackers.flush()

    def _begin_interval(self) -> None:
        self._counts, self._steps, self._loss, self._flops = Counts(), 0, 0.0, 0.0

    def _log(self, step: int, norm: Any) -> None:
        """One line: the ranks bring their intervals together, the first shows and keeps what came of it."""
        numbers = summary(from_all(self._interval()))
        shared = {"learning_rate": self._rate} | ({} if norm is None else {"grad_norm": float(norm)})
        numbers = {"loss": numbers.pop("loss"), **shared, **numbers, "eta_s": self._eta(step)}
        self._progress.loss_first = numbers["loss"] if self._progress.loss_first is None else self._progress.loss_first
        self._progress.loss_last = numbers["loss"]
        if self._line is not None:
            self._keep({"step": step, "time": round(time.time(), 3), **_rounded(numbers)})
            self._line.update(step, **shown(numbers))
        self._divergence.check(step, numbers["loss"], self._good, self._train.learning_rate)

    def _interval(self) -> Interval:
        now, waits = self._clock(), self._trainer.batches.waits
        mine = Interval(
            counts=self._counts,
            steps=self._steps,
            loss=self._loss / self._steps,
            seconds=now - self._since,
            wait=sum(waits[self._waits :]),
            flops=self._flops,
            peak_flops=self._peak,
            memory=peak_memory(),
            gpu_memory=peak_gpu_memory(),
            terms=_terms(self._trainer),
        )
        self._since, self._waits = now, len(waits)
        self._begin_interval()
        return mine

    def _eta(self, step: int) -> float:
        """Seconds left at the pace since this attempt began."""
        done = step - self._first_step
        return (self._clock() - self._start) / done * max(self._progress.steps - step, 0) if done else 0.0

    def _keep(self, record: Record) -> None:
        self.history.add(record)
        if self._trackers is not None:
            self._trackers.log(record)


def monitor_for(job: StageJob, trainer: Any, model: Any, progress: Progress, resume: Path | None) -> Monitor:
    """The monitor of this rank's part of ``job``.

    Args:
        job: what is trained.
        trainer: of it, with its batches in use.
        model: as it trains.
        progress: where the run stands.
        resume: folder of the checkpoint that it goes on from.
    """
    train, history = job.train, History.read(resume)
    language = not isinstance(train, AlignSettings) or train.caption_weight > 0
    reference = isinstance(train, DpoSettings) and train.reference != "ahead"
    costs = step_costs(model, language=language, reference=reference)
    peak = device_peak(frozen_dtype(train.precision, train.use_gpu), train.use_gpu)
    trackers, validated = None, None
    if is_first():
        place = place_of(job)
        names = [*train.trackers, *(["ray"] if ray.is_initialized() else [])]
        trackers = Trackers(names, place, history.records)
        if train.evaluate_every is not None:
            validated = Validated(job.storage, place.uri, history)
    return Monitor(job.stage, trainer, progress, train, history, costs, peak, trackers, validated or list)


def gradient_norm(engine: Any) -> Any:
    """Norm of the last step's gradient before clipping, over all ranks; None where the engine does not tell."""
    ask = getattr(engine, "get_global_grad_norm", None)
    return ask() if ask is not None else None


def shown(numbers: dict[str, float]) -> dict[str, str]:
    """What of the numbers stands in the progress line: short, as Ray puts the worker's name before it."""
    loss = {"loss": f"{numbers['loss']:.3f}"}
    speed = {"tok_per_s": si(numbers["tokens_per_s"])}
    mfu = {"mfu": f"{numbers['mfu']:.0%}"} if "mfu" in numbers and "gpu_memory_gb" in numbers else {}
    shares = {"wait": f"{numbers['data_wait']:.0%}", "pad": f"{numbers['padding']:.0%}"}
    memory = {"mem": f"{numbers.get('gpu_memory_gb', numbers['memory_gb']):.1f}G"}
    return loss | speed | mfu | shares | memory


def si(value: float) -> str:
    """``950``, ``1.2k``, ``34k``, ``1.2M``."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995:
            scaled = value / limit
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"


def _terms(trainer: Any) -> dict[str, float]:
    """Means of what the trainer has noted since it was last asked."""
    noted = trainer._metrics["train"]
    means = {name: math.fsum(values) / len(values) for name, values in noted.items() if values and name not in UNLOGGED}
    noted.clear()
    return {name: value for name, value in means.items() if math.isfinite(value)}


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    """Seven digits of rates and shares; the loss and its terms as they are: curves are compared by them."""
    rough = {"samples_per_s", "tokens_per_s", "padding", "data_wait", "memory_gb", "gpu_memory_gb", "mfu", "eta_s"}
    return {name: float(f"{value:.7g}") if name in rough else value for name, value in numbers.items()}
