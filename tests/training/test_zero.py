"""Two workers train the real stages under each ZeRO stage and offload; what one saves, another goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from stetholm.settings import AlignSettings, DpoSettings, SftSettings
from stetholm.training.zero import zero_config
from tests.training.together import two_ranks

SETUPS: dict[str, dict[str, Any]] = {
    "0": {"zero_stage": 0},
    "1": {"zero_stage": 1},
    "2": {"zero_stage": 2},
    "3": {"zero_stage": 3},
    "1 offload": {"zero_stage": 1, "offload": "optimizer"},
    "2 offload": {"zero_stage": 2, "offload": "optimizer"},
    "3 offload": {"zero_stage": 3, "offload": "optimizer"},
    "3 offload all": {"zero_stage": 3, "offload": "all"},
    "2 checkpointing": {"zero_stage": 2, "gradient_checkpointing": True},
    "3 checkpointing": {"zero_stage": 3, "gradient_checkpointing": True},
}
FEW = {"sft": ["1", "2 offload", "3 checkpointing"], "dpo": ["3", "3 offload all"]}
ALL = {"sft": list(SETUPS), "dpo": ["0", "2", "3", "3 offload all"], "align": ["2", "3"]}
EACH = 2
"""Steps under each setup."""


class Watch(TrainerCallback):
    """Restores at the beginning, notes each step's loss, saves at the end."""

    def __init__(self, trainer: Any, folder: Path, step: int) -> None:
        self.trainer, self.folder, self.step = trainer, folder, step
        self.losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from stetholm.training.state import restore_moments

        if self.step:
            restore_moments(self.trainer.model_wrapped, torch.load(self.folder / "moments.pt"), self.step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.losses.append(float(self.trainer.loss))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from stetholm.model.checkpoint import own_keys
        from stetholm.training.ranks import from_all, is_first
        from stetholm.training.state import gather_moments, gather_weights

        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        weights, moments = gather_weights(model, own_keys(model)), gather_moments(self.trainer.model_wrapped)
        if is_first():
            torch.save({name: tensor.clone() for name, tensor in weights.items()}, self.folder / "weights.pt")
            torch.save(moments, self.folder / "moments.pt")
        from_all(None)  # nobody reads before all is written


def _rows(stage: str, processor: Any, rank: int, steps: range) -> list[dict[str, Any]]:
    from stetholm.training.collate import Prepare, answers_of

    prepare = Prepare(processor, 256, answers_of(stage))
    rows = []
    for number in range(4 * steps.start + rank, 4 * steps.stop, 2):
        features = np.random.default_rng(number).random((1, 64, 218), dtype=np.float32)
        row = {
            "sample_id": f"s{number}",
            "epoch": number // 4,  # a batch is an epoch: their order is given
            "task": "Report",
            "dataset": "heart-test",
            "instruction": "What is heard?",
            "response": f"The heart sound is number {number}.",
            "chosen": f"A murmur of grade {number}.",
            "rejected": "I cannot tell.",
            "recordings": 1,
            "features": features.tobytes(),
        }
        rows.append(row | prepare(row))
    return rows


def _model(stage: str, base: Path) -> tuple[Any, Any]:
    from stetholm.model.lora import add_lora, set_trainable
    from stetholm.settings import LoraSettings
    from tests.model.tiny import lively, tiny_model

    model, processor = tiny_model(base)
    lively(model)
    if stage == "dpo":
        add_lora(model, LoraSettings(r=4, alpha=8, dropout=0.0), name="dpo")
    set_trainable(model, stage)
    return model, processor


def _train(stage: str, setup: str, base: Path, folder: Path, rank: int, steps: range) -> list[float]:
    """Losses of ``steps`` under a setup, which begins with what lies in ``folder`` unless they begin with 0."""
    import gc

    from accelerate.state import AcceleratorState
    from transformers.integrations import unset_hf_deepspeed_config

    from stetholm.training.arguments import trainer_arguments
    from stetholm.training.batches import BatchPlan, StepBatches
    from stetholm.training.collate import Collate
    from stetholm.training.ranks import any_of_all
    from stetholm.training.trainers import trainer_for

    # Each trainer has a DeepSpeed configuration of its own; under ZeRO-3's the next model would be born in parts.
    gc.collect()
    unset_hf_deepspeed_config()
    AcceleratorState._reset_state()
    settings = {"align": AlignSettings, "sft": SftSettings, "dpo": DpoSettings}[stage](
        batch_size=2, learning_rate=3e-3, use_gpu=False, **SETUPS[setup]
    )
    model, processor = _model(stage, base)
    if steps.start:
        model.load_state_dict(torch.load(folder / "weights.pt"), strict=False)
    arguments = trainer_arguments(settings, 0, len(steps), folder) | {"lr_scheduler_type": "constant"}
    trainer = trainer_for(stage, model, processor, arguments, settings)
    trainer.keep_statistics = True
    rows = _rows(stage, processor, rank, steps)
    trainer.use(StepBatches(lambda: rows, BatchPlan(2), Collate(stage, processor), any_of_all))
    watch = Watch(trainer, folder, steps.start)
    trainer.add_callback(watch)
    trainer.train()
    return watch.losses


def _worker(rank: int, results: Any, base: Path, folder: Path, stages: dict[str, list[str]]) -> None:
    for stage, setups in stages.items():
        whole = _train(stage, "0", base, folder, rank, range(EACH * len(setups)))
        for number, setup in enumerate(setups):
            steps = range(EACH * number, EACH * (number + 1))
            losses = _train(stage, setup, base, folder, rank, steps)
            if rank == 0:
                results[stage, setup] = (losses, whole[steps.start : steps.stop])


@pytest.fixture(scope="module", params=[FEW, pytest.param(ALL, marks=pytest.mark.long)], ids=["few", "all"])
def results(request: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, tuple[list[float], list[float]]]:
    """Losses of each stage and setup, and those of the same steps of a run under stage 0 that nobody interrupted."""
    from tests.model.tiny import tiny_base

    base, folder = (tmp_path_factory.mktemp(name) for name in ("base", "saved"))
    tiny_base(base, "gemma3")
    return two_ranks(_worker, base, folder, request.param)


def test_each_setup_goes_on_with_what_the_one_before_has_saved(results):
    """The losses do not tell who held which part of the state."""
    for (stage, setup), (losses, uninterrupted) in results.items():
        assert len(losses) == EACH
        assert losses == pytest.approx(uninterrupted, rel=1e-4), (stage, setup)


@pytest.mark.parametrize("stage", FEW)
def test_the_runs_learn(results, stage):
    losses = [loss for (of, _), (each, _) in results.items() if of == stage for loss in each]
    assert abs(losses[-1] - losses[0]) > 0.005 * abs(losses[0])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_is_what_deepspeed_understands(stage):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    settings = SftSettings(zero_stage=stage, offload="all" if stage == 3 else "optimizer", use_gpu=True)
    config = DeepSpeedZeroConfig(**zero_config(settings, 1)["zero_optimization"])
    assert config.offload_optimizer is not None and config.offload_optimizer.pin_memory
    assert (config.offload_param is not None) == (stage == 3)
