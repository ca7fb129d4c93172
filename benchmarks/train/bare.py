"""A bare loop on the DeepSpeed engine: the mathematics of our SFT step on ready batches, and nothing else."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import deepspeed
import torch

from benchmarks.train.ours import stage_job
from benchmarks.train.samples import training_pairs
from benchmarks.train.sides import Pace
from stetholm.settings import SftSettings
from stetholm.training import worker
from stetholm.training.batches import BatchPlan
from stetholm.training.collate import Collate
from stetholm.training.ranks import join_group
from stetholm.training.zero import zero_config


def train_bare(pace: Pace, **train: Any) -> None:
    """The loop: forward, backward, step, on the batches that our side makes, in the same order.

    Args:
        pace: whose turn it is.
        train: settings of sft.
    """
    torch.manual_seed(0)
    join_group(bool(train.get("use_gpu")))
    job = stage_job("sft", **train)
    model, processor = worker.stage_model(job, None)
    prepare, plan = worker.prepare_of(job, processor), BatchPlan(job.train.batch_size)
    rows = [row | prepare(row) | {"epoch": 0} for row in training_pairs()]
    batches = [Collate("sft", processor)(group) for group in plan.batches(rows)]
    config = zero_config(job.train, job.train.batch_size)
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw(model, job.settings.sft), config=config)
    engine.train()
    ready, going = cycle(batches), pace.ready()
    while going:
        batch = next(ready)
        engine.backward(engine(**batch).loss)
        engine.step()
        going = pace.step(len(batch["input_ids"]), int(batch["attention_mask"].sum()))


def adamw(model: torch.nn.Module, train: SftSettings) -> torch.optim.AdamW:
    """With our settings: matrices decay, vectors do not, the encoder has a rate of its own."""
    groups = [
        {
            "params": [
                parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad and (".audio_tower." in name) == encoder and (parameter.dim() > 1) == matrix
            ],
            "lr": (train.encoder_learning_rate or train.learning_rate) if encoder else train.learning_rate,
            "weight_decay": train.weight_decay if matrix else 0.0,
        }
        for encoder in (True, False)
        for matrix in (True, False)
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
