"""Gathered optimizer state: two workers, each ZeRO stage, and on from one stage to another."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.together import one_rank, two_ranks

STAGES = (0, 1, 2, 3)


def _engine(model: nn.Module, stage: int):
    import deepspeed

    from stetholm.settings import TrainSettings
    from stetholm.training.zero import zero_config

    weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    biases = [p for p in model.parameters() if p.requires_grad and p.dim() == 1]
    groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    config = zero_config(TrainSettings(zero_stage=stage), 2)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3))
    model[0].weight.requires_grad = False
    return model


def _steps(engine, rank: int, count: int) -> list[float]:
    data = torch.arange(8.0).reshape(2, 4) / (8 + rank)
    losses = []
    for _ in range(count):
        loss = engine(data).pow(2).sum()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def _worker(rank: int, results) -> None:
    from stetholm.training.state import gather_moments, gather_weights, restore_moments

    for stage, later in zip(STAGES, (*STAGES[1:], STAGES[0]), strict=True):
        engine = _engine(_model(), stage)
        _steps(engine, rank, 3)
        names = [name for name, _ in engine.module.named_parameters()]
        weights, moments = _of_first(gather_weights(engine.module, names)), _of_first(gather_moments(engine))
        expected = _steps(engine, rank, 3)
        resumed = _model()
        resumed.load_state_dict(weights)
        engine = _engine(resumed, later)
        restore_moments(engine, moments, step=3)
        if rank == 0:
            results[stage] = (expected, _steps(engine, rank, 3), moments)
        else:
            _steps(engine, rank, 3)


def _of_first(tensors):
    """A copy of what the first rank gathered, on every rank, as if read from a checkpoint."""
    import torch.distributed as dist

    box = [tensors]
    dist.broadcast_object_list(box, src=0)
    return {name: tensor.clone() for name, tensor in box[0].items()}


@pytest.fixture(scope="module")
def results():
    return two_ranks(_worker)


@pytest.mark.parametrize("stage", STAGES)
def test_training_goes_on_as_if_nothing_had_happened(results, stage):
    expected, resumed, _ = results[stage]
    assert resumed == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_moments_are_whole_and_of_what_trains(results, stage):
    assert sorted(results[stage][2]) == [
        f"{name}.{key}" for name in ("0.bias", "2.bias", "2.weight") for key in ("exp_avg", "exp_avg_sq")
    ]


def _restore(rank: int, results, moments) -> None:
    from stetholm.training.state import gather_moments, restore_moments

    for stage in STAGES:
        engine = _engine(_model(), stage)
        restore_moments(engine, moments[stage], step=3)
        results[stage] = gather_moments(engine)


def test_one_worker_has_the_moments_of_two(results):
    moments = {stage: results[stage][2] for stage in STAGES}
    restored = one_rank(_restore, moments)
    for stage in STAGES:
        assert restored[stage].keys() == moments[stage].keys()
        for name, moment in moments[stage].items():
            assert restored[stage][name].equal(moment) and moment.abs().sum() > 0, (stage, name)
