"""Evaluation of checkpoints beside training: held-out loss, in a task that training does not wait for.

Ray Train starts :func:`evaluate_checkpoint` for every ``train.evaluate_every``-th checkpoint, one at a time, and ends
the run when the last has been evaluated. When training leaves before its end, nobody waits for what is not evaluated
yet: that is done when the stage is (:mod:`stetholm.training.ending`). Numbers lie in ``<stage>/validation/<step>.json``
as soon as they are there.
What is measured, of the same rows each time, without dropout or augmentation:

- align and sft: ``val_loss``, the mean negative log-likelihood of the response tokens of the corpus's val split under
  teacher forcing, and ``val_accuracy``, how many of them are the likeliest token;
- dpo: of the val split of the pairs (``prefer.val_pairs``) ``val_loss``, the length-averaged DPO term, ``val_margin``,
  the mean of its margin (before beta), and ``val_accuracy``, how many pairs have a margin above 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stetholm.corpus.manifest import Manifest
from stetholm.errors import Stopped, UserError
from stetholm.roles import gpu_nodes
from stetholm.runs import run_uri
from stetholm.settings import DpoSettings
from stetholm.storage import Storage
from stetholm.training.history import History, Record
from stetholm.training.job import StageJob
from stetholm.training.rows import stage_rows

if TYPE_CHECKING:
    import torch

SPLIT = "val"
FOLDER = "validation"
"""Below a stage's folder."""
READER_BYTES = 128 * 2**20
"""Of the object store: reading for evaluation takes little beside training."""


def require_validation(job: StageJob) -> None:
    """Raise a UserError if checkpoints are to be evaluated and nothing is held out for it."""
    if job.train.evaluate_every is None:
        return
    splits = Manifest.load(job.storage, job.corpus).splits
    if SPLIT not in splits or not splits[SPLIT].rows:
        remedy = (
            "set prefer.val_pairs and make the pairs under another run.name" if job.stage == "dpo" else "ingest one"
        )
        raise UserError(
            f"{job.stage}.evaluate_every: {job.corpus} has no {SPLIT} split: {remedy}, or leave evaluate_every out"
        )


def validation_config(job: StageJob, environment: dict[str, str], leave: str) -> Any:
    """Ray Train's ValidationConfig; None where checkpoints are not to be evaluated.

    Args:
        job: the stage.
        environment: variables of the training workers.
        leave: see :func:`evaluate_checkpoint`.

    Raises:
        UserError: a GPU is asked for that the cluster does not have besides those of training.
    """
    train = job.train
    if train.evaluate_every is None:
        return None
    import ray
    from ray.train.v2.api.validation_config import ValidationConfig

    gpus = ray.cluster_resources().get("GPU", 0) - (train.workers if train.use_gpu else 0)
    if train.evaluate_gpu and gpus < 1:
        raise UserError(
            f"train.evaluate_gpu: the cluster has no GPU besides those of {train.workers} workers, so the evaluation "
            "would wait for ever: add one, use fewer workers, or leave evaluate_gpu out (it then runs on a CPU)"
        )
    function = partial(evaluate_checkpoint, job=job, leave=leave)
    return ValidationConfig(function, ray_remote_kwargs=task_options(job, environment))


def task_options(job: StageJob, environment: dict[str, str]) -> dict[str, Any]:
    """Ray's options of the evaluating task; ``environment`` as for :func:`validation_config`."""
    train = job.train
    device = {} if train.evaluate_gpu else {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return {
        "num_cpus": train.evaluate_cpus,
        "num_gpus": 1 if train.evaluate_gpu else 0,
        "runtime_env": {"env_vars": environment | device},
        "label_selector": gpu_nodes(train.evaluate_gpu, train.label_selector),
    }


def is_due(job: StageJob, step: int) -> bool:
    """Whether the checkpoint of ``step`` is to be evaluated. The last of a run, at an odd step, always is."""
    every = job.train.evaluate_every
    if every is None:
        return False
    number, odd = divmod(step, job.train.checkpoint_every)
    return bool(odd) or number % every == 0


def unmeasured(job: StageJob, last: int) -> list[int]:
    """Steps whose checkpoints were to be evaluated in a run of ``last`` steps and of which there are no numbers."""
    uri = f"{run_uri(job.settings, job.storage, job.stage)}/{FOLDER}"
    measured = {int(Path(file).stem) for file in job.storage.list(uri) if file.endswith(".json")}
    steps = {*range(job.train.checkpoint_every, last, job.train.checkpoint_every), last}
    return sorted(step for step in steps - measured if is_due(job, step) or step == last)


def evaluate_checkpoint(checkpoint: Any, job: StageJob, leave: str | None = None) -> dict[str, Any]:
    """Measure a checkpoint of ``job``; what Ray Train calls in a task.

    Args:
        checkpoint: Ray Train's, or anything with ``as_directory``.
        job: the stage that made it.
        leave: key in Ray's store that is there once training leaves before its end: whoever waits for this, waits no
            longer. What has been begun is then left too, and made when the stage is done.

    Returns:
        ``val_loss`` and others: see the module. They are written below the stage's folder too. Nothing where training
        leaves.
    """
    try:
        return _evaluate(checkpoint, job, partial(_require_going, leave))
    except Stopped:
        return {}


def _evaluate(checkpoint: Any, job: StageJob, before_each: Callable[[], None]) -> dict[str, Any]:
    before_each()
    import torch

    from stetholm.ray_session import quiet_data
    from stetholm.training.state import load_training_state

    quiet_data()
    torch.set_num_threads(max(1, int(job.train.evaluate_cpus)))
    started = time.monotonic()
    job = _on_its_device(job)
    with checkpoint.as_directory() as folder:
        step = load_training_state(Path(folder))[0].step
        numbers = measure(job, Path(folder), before_each)
    record = {
        "step": step,
        "time": round(time.time(), 3),
        **numbers,
        "val_seconds": round(time.monotonic() - started, 1),
    }
    job.storage.write_json(f"{run_uri(job.settings, job.storage, job.stage)}/{FOLDER}/{step:08d}.json", record)
    return numbers


def _require_going(leave: str | None) -> None:
    if leave is None:
        return
    from ray.experimental.internal_kv import _internal_kv_exists

    if _internal_kv_exists(leave):
        raise Stopped("training leaves")


def measure(job: StageJob, folder: Path, before_each: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Held-out numbers of the checkpoint ``folder``: see the module. Calls ``before_each`` batch, which may raise."""
    import torch

    from stetholm.training.collate import Collate
    from stetholm.training.planning import batch_plan
    from stetholm.training.response_head import install_response_head
    from stetholm.training.worker import prepare_of, stage_model

    model, processor = stage_model(job, folder)
    install_response_head(model)
    model.eval().to("cuda" if job.train.use_gpu else "cpu")
    prepare, collate = prepare_of(job, processor), Collate(job.stage, processor)
    rows = (row | prepare(row) for row in _rows(job))
    score: Any = _pairs if job.stage == "dpo" else _responses
    with torch.no_grad():
        batches = (_moved(collate(group), model.device) for group in batch_plan(job).batches(rows))
        parts = []
        for batch in batches:
            before_each()
            parts.append(score(model, batch, job.train))
    return _together(parts)


class Validated:
    """Records of evaluations as they come in.

    Args:
        storage: open storage.
        uri: the stage's folder.
        history: what is known; a record that it has is not given again.
    """

    def __init__(self, storage: Storage, uri: str, history: History) -> None:
        self._storage, self._uri, self._history = storage, f"{uri}/{FOLDER}", history

    def __call__(self) -> list[Record]:
        """Those that are new since the last call."""
        known = {record["step"] for record in self._history.validation()}
        found = {int(Path(uri).stem): uri for uri in self._storage.list(self._uri) if uri.endswith(".json")}
        return [self._storage.read_json(found[step]) for step in sorted(found.keys() - known)]


def _on_its_device(job: StageJob) -> StageJob:
    """``job`` with ``use_gpu`` as the evaluation has it."""
    stage = getattr(job.settings, job.stage).model_copy(update={"use_gpu": job.train.evaluate_gpu})
    return replace(job, settings=job.settings.model_copy(update={job.stage: stage}))


def _rows(job: StageJob) -> Iterator[dict[str, Any]]:
    """The rows that are measured, in an order that the seed alone decides."""
    stream = stage_rows(job, SPLIT, augmentation="none", memory=READER_BYTES)
    return islice(stream.rows(), job.train.evaluate_samples)


def _moved(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    names = ("input_ids", "attention_mask", "labels", "input_features", "audio_index")
    return {name: batch[name].to(device) for name in names if name in batch}


Part = dict[str, tuple[float, int]]
"""Sum and count of each number."""


def _responses(model: Any, batch: dict[str, Any], train: Any) -> Part:
    scored = model(**batch, fused_lm_head=True)
    count = int(scored.label_mask.sum())
    right = float((scored.is_top1 & scored.label_mask).sum())
    return {"val_loss": (-float(scored.log_probs.sum()), count), "val_accuracy": (right, count)}


def _pairs(model: Any, batch: dict[str, Any], train: DpoSettings) -> Part:
    from torch.nn.functional import logsigmoid

    from stetholm.model.lora import reference

    policy = _chosen_less_rejected(model, batch)
    with reference(model):
        margin = policy - _chosen_less_rejected(model, batch)
    pairs = len(margin)
    return {
        "val_loss": (-float(logsigmoid(train.beta * margin).sum()), pairs),
        "val_margin": (float(margin.sum()), pairs),
        "val_accuracy": (float((margin > 0).sum()), pairs),
    }


def _chosen_less_rejected(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """(pairs,) difference of the length-averaged log-probabilities, both under clean audio."""
    from stetholm.training.losses import mean_logps

    chosen, rejected, _ = mean_logps(model(**batch, fused_lm_head=True).log_probs, batch["labels"]).chunk(3)
    return chosen - rejected


def _together(parts: Sequence[Part]) -> dict[str, float]:
    names = list(dict.fromkeys(name for part in parts for name in part))
    sums = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(total for total, _ in some) / sum(count for _, count in some) for name, some in sums.items()}
