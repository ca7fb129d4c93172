"""Alignment of two ranks is that of one process with all their rows: loss, terms and gradient."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from stetholm.model.lora import set_trainable
from stetholm.settings import AlignSettings
from stetholm.training.collate import Collate, Prepare, answers_of
from stetholm.training.response_head import install_response_head
from stetholm.training.trainers import AlignTrainer
from tests.serving.tiny import tiny_model
from tests.training.together import two_ranks

ROWS = (
    (1, "The main finding is wheezes."),
    (2, "Audio 1 shows normal sounds, while audio 2 shows wheezes."),
    (1, "The main finding is a murmur of grade three, at the apex."),
    (1, "The main finding is wheezes."),  # of the other rank too: one group
    (1, "Normal."),
)
"""Recordings and response."""
SPLITS = {"uneven": 3, "one has none": 5}
"""How many of the rows the first rank has."""


def _loss(rows: slice, world: int) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    """Loss, terms and gradient of this process with its rows, which are one of ``world`` parts."""
    model, processor = tiny_model()
    set_trainable(model.eval(), "align")
    install_response_head(model)
    trainer = AlignTrainer.__new__(AlignTrainer)
    trainer.processing_class = processor
    trainer.accelerator = SimpleNamespace(unwrap_model=lambda model: model, num_processes=world)
    trainer._metrics = {"train": defaultdict(list)}
    trainer.use_settings(AlignSettings(caption_weight=0.5))
    batches = [Collate("align", processor)([_row(processor, number) for number in some]) for some in _parts(rows)]
    items = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    batch = batches[0] | {"samples": [(0, "s")] * len(batches[0]["responses"])}
    loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(items))
    loss.backward()
    gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), {name: value[0] for name, value in trainer._metrics["train"].items()}, gradient


def _parts(rows: slice) -> tuple[list[int], list[int]]:
    """The numbers of this rank's rows, and of the others'."""
    mine = list(range(len(ROWS)))[rows]
    return mine, [number for number in range(len(ROWS)) if number not in mine]


def _row(processor: Any, number: int) -> dict[str, Any]:
    recordings, response = ROWS[number]
    row = {
        "sample_id": f"s{number}",
        "epoch": 0,
        "task": "Identification",
        "dataset": "heart-test",
        "instruction": "What is heard?",
        "response": response,
        "recordings": recordings,
        "features": np.random.default_rng(number).random((recordings, 64, 218), dtype=np.float32).tobytes(),
    }
    return row | Prepare(processor, 256, answers_of("align"))(row)


def _worker(rank: int, results: Any) -> None:
    for name, first in SPLITS.items():
        loss, terms, gradient = _loss(slice(first, None) if rank else slice(first), 2)
        for each in gradient.values():  # as DeepSpeed does
            dist.all_reduce(each)
        results[name, rank] = (loss, terms, {key: each / 2 for key, each in gradient.items()})


@pytest.fixture(scope="module")
def ranks() -> dict[Any, Any]:
    return two_ranks(_worker)


@pytest.fixture(scope="module")
def whole() -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    return _loss(slice(None), 1)


@pytest.mark.parametrize("split", SPLITS)
def test_the_loss_is_that_of_all_rows(split: str, ranks: dict[Any, Any], whole: Any) -> None:
    """Its mean over the ranks, and each term's, as logs show them."""
    (first, terms, _), (second, others, _) = (ranks[split, rank] for rank in range(2))
    assert (first + second) / 2 == pytest.approx(whole[0], rel=1e-5)
    assert terms.keys() == others.keys() == {"contrastive", "scale", "caption"}
    assert {name: (terms[name] + others[name]) / 2 for name in terms} == pytest.approx(whole[1], rel=1e-5)
    assert terms["contrastive"] == pytest.approx(others["contrastive"], rel=1e-6)  # each knows all


@pytest.mark.parametrize("split", SPLITS)
def test_so_is_the_gradient(split: str, ranks: dict[Any, Any], whole: Any) -> None:
    gradient = ranks[split, 0][2]
    assert gradient.keys() == whole[2].keys()
    total = sum(each.square().sum() for each in whole[2].values()).sqrt()
    for name, expected in whole[2].items():
        # Not number by number: those of the first layers are sums of many that nearly cancel each other.
        assert (gradient[name] - expected).norm() <= 1e-2 * expected.norm() + 1e-5 * total, name
