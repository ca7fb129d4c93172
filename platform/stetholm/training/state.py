"""What a training checkpoint holds beside the model: enough to go on as if nothing had happened.

The trainable part is small (LoRA, projector, encoder), so its optimizer state is gathered whole from the ZeRO
partitions and saved by name. It therefore loads under any number of workers and any ZeRO stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stetholm.errors import UserError
from stetholm.training.lineage import STATE_FOLDER
from stetholm.training.ranks import is_first, rank

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        samples: samples trained on, by all workers.
        loss_first: the first logged loss.
        loss_last: the last logged loss.
        seconds: time spent in steps, over all attempts.
        wait_seconds: of these, waiting for data: by step the worker that waited longest, from the first batch on.
        start_seconds: until the first batch was there, in the latest attempt.
        steps: planned steps of the whole run, and workers, by which they were planned.
        workers: see steps.
        target: [max_steps, epochs] for which they were planned.
        corpus: SHA-256 of the manifest for which they were planned.
        batches: [batch_size, tokens_per_batch] for which they were planned.
        dealt: the ledger when the rows were dealt to these workers: see ``CorpusStream``.
        ledger: the consumed sample ids: ``Ledger.to_json``.
        seed: run.seed, from which with step, rank and sample all that is drawn follows.
    """

    step: int = 0
    samples: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    seconds: float = 0.0
    wait_seconds: float = 0.0
    start_seconds: float = 0.0
    steps: int = 0
    workers: int = 0
    target: list[float | None] = field(default_factory=list)
    corpus: str = ""
    batches: list[int | None] = field(default_factory=list)
    dealt: str = ""
    ledger: str = ""
    seed: int = 0


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that train, in the model's order."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def gather_weights(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Whole tensors of ``names`` (parameters and buffers) on the CPU, for the first rank; others get none.

    A collective call under ZeRO-3. What is whole already is not copied.
    """
    wanted = set(names)
    found: dict[str, Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in wanted:
            partitioned = hasattr(tensor, "ds_id")
            with deepspeed.zero.GatheredParameters([tensor]) if partitioned else nullcontext():
                if is_first():
                    found[name] = tensor.detach().cpu().clone() if partitioned else tensor.detach().cpu()
    return found


def gather_moments(engine: Any) -> dict[str, Tensor]:
    """Adam's moments by parameter name, fp32, whole, for the first rank; others get none. A collective call."""
    _link(engine)
    moments: dict[str, Tensor] = {}
    for name, parameter in trainable(engine.module):
        for key in _MOMENTS:
            moment = _moment(engine, parameter, key)
            if moment is not None and is_first():
                moments[f"{name}.{key}"] = moment.detach().float().cpu()
    return moments


def restore_moments(engine: Any, moments: dict[str, Tensor], step: int) -> None:
    """Put gathered moments back, under whatever ZeRO stage and number of workers the engine has.

    Raises:
        UserError: the moments are of other parameters than the model's.
    """
    names = {f"{name}.{key}" for name, _ in trainable(engine.module) for key in _MOMENTS}
    if names != moments.keys():
        odd = sorted(names ^ moments.keys())[0]
        raise UserError(f"the checkpoint's optimizer state does not fit this model (first difference: {odd})")
    _materialise(engine, step)
    for name, parameter in trainable(engine.module):
        for key in _MOMENTS:
            _set_moment(engine, parameter, key, moments[f"{name}.{key}"])


def save_training_state(
    folder: Path, progress: Progress, moments: dict[str, Tensor], scheduler: dict[str, Any]
) -> None:
    """Write ``training_state/`` below a checkpoint folder."""
    target = folder / STATE_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    save_file(moments, target / "optimizer.safetensors")
    (target / "state.json").write_text(json.dumps({"progress": asdict(progress), "scheduler": scheduler}))


def load_training_state(folder: Path) -> tuple[Progress, dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_training_state` wrote: progress, moments, scheduler."""
    state = json.loads((folder / STATE_FOLDER / "state.json").read_text())
    return Progress(**state["progress"]), load_file(folder / STATE_FOLDER / "optimizer.safetensors"), state["scheduler"]


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    optimizer = engine.optimizer
    return getattr(optimizer, "optimizer", optimizer)


def _materialise(engine: Any, step: int) -> None:
    """Give every (partition of a) parameter its Adam state; torch makes it at the first step only."""
    optimizer = _torch_optimizer(engine)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in getattr(engine.optimizer, "fp32_partitioned_groups_flat", grouped):
        state = optimizer.state[parameter]
        state["step"] = torch.tensor(float(step), dtype=torch.float32)
        for key in _MOMENTS:
            state[key] = torch.zeros_like(parameter)
    _link(engine)


def _link(engine: Any) -> None:
    """Let ZeRO-1 and -2 find each parameter's moments in the flat partitions.

    DeepSpeed does so after the first parameter group's first step, when the other groups have no moments yet.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _moment(engine: Any, parameter: nn.Parameter, key: str) -> Tensor | None:
    if engine.zero_optimization_stage() == 0:
        return _torch_optimizer(engine).state.get(parameter, {}).get(key)
    return deepspeed.utils.safe_get_full_optimizer_state(parameter, key)


def _set_moment(engine: Any, parameter: nn.Parameter, key: str, value: Tensor) -> None:
    if engine.zero_optimization_stage() == 0:
        _torch_optimizer(engine).state[parameter][key].copy_(value)
        return
    if hasattr(parameter, "ds_tensor"):
        # ZeRO-3 cuts a parameter into equal parts, the last one padded; DeepSpeed's setter fails on that padding.
        mine, _ = engine.optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        start = mine.numel() * rank()
        part = value.flatten()[start : start + mine.numel()]
        mine[: part.numel()].copy_(part)
        return
    deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)
