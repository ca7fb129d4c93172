"""What ``python -m stetholm.cluster plan`` reckons with."""

from __future__ import annotations

from pydantic import Field

from stetholm.settings.base import Section


class PlanSettings(Section):
    """Sizes, rates and prices of a plan; the sizes are StethoBench's."""

    recordings: int = Field(16_125, ge=1)
    train_pairs: int = Field(48_331, ge=1)
    align_pairs: int = Field(19_822, ge=1)
    """Of the training pairs, those of the tasks that alignment takes (Identification and Report)."""
    test_pairs: int = Field(23_921, ge=1)
    tokens: int = Field(132, ge=1)
    """Of a sample: the published 64 of instruction and response each, and a recording's four."""
    answer_tokens: int = Field(64, ge=1)
    """Of these, the response's; also of an answer that is generated."""
    rates: dict[str, float] = Field({})
    """Samples a second of one GPU (of one CPU for ingest, and for all without train.use_gpu), by job: ingest, align,
    sft, prefer, dpo, evaluate. What is not given is taken from measured lines, or estimated; the plan says which."""
    gpu: str = "A10G"
    """Of the trainers, for estimates: a part of a name of training.flops.PEAKS."""
    train_mfu: float = Field(0.3, gt=0, le=1)
    """Assumed model FLOPs utilisation of training on a GPU. Measure yours: training logs it."""
    generate_mfu: float = Field(0.05, gt=0, le=1)
    """Assumed of generating answers, which memory bounds."""
    fixed_seconds: float = Field(60.0, ge=0)
    """Of each job: its start, its model's loading, its last checkpoint."""
    node_seconds: float = Field(300.0, ge=0)
    """Of each job on nodes that have to be started: a machine, its setup commands."""
    doubling_efficiency: float = Field(0.95, gt=0, le=1)
    """Share of the speed that is left when the workers are doubled."""
    prices: dict[str, float] = Field({})
    """Dollars an hour by machine, e.g. ``plan.prices.g5.4xlarge=1.2``; others: AWS's list as last known here."""
