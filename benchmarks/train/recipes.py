"""The published recipe's training steps, written down from their description.

SFT: fp32, batch 16, the language model's logits at every position, a Python loop over the samples for their losses,
AdamW over all that trains (LoRA, projector, encoder). mDPO: batch 1, the policy and a whole copy of it as the
reference, six forwards (chosen, rejected, chosen with degraded audio, by both), encoder frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from benchmarks.published_model import PublishedModel, padded
from benchmarks.train.samples import COUNT, training_pairs
from benchmarks.train.sides import Pace
from stetholm.audio.degrade import degrade
from stetholm.corpus.stream import read_features
from stetholm.model.fresh import build_model
from stetholm.settings import ModelSettings
from stetholm.training.batches import Row
from stetholm.training.collate import Prepare, answers_of

BATCH, SFT_RATE, DPO_RATE, WARMUP, STEPS = 16, 5e-5, 3e-6, 100, 90_000
BETA, CONDITIONAL, ANCHOR, MARGIN = 0.5, 0.5, 1.5, 0.5
PREFIX = 4


class PublishedSft:
    """One step: a batch through the model, the mean of the samples' losses, AdamW.

    Args:
        model: trains but for the language model's own weights.
        eos: pads.
    """

    def __init__(self, model: PublishedModel, eos: int) -> None:
        self.model, self.eos = model.train(), eos
        self.optimizer, self.schedule = _optimizer(model, SFT_RATE)

    def losses(self, rows: Sequence[Row]) -> list[Tensor]:
        """Mean cross-entropy of each sample's response; rows are prepared for sft."""
        texts = [row["input_ids"][PREFIX:] for row in rows]
        ids, mask = padded(texts, self.eos)
        logits = self.model.logits(_clips(rows), ids, mask)
        losses = []
        for one, text, row in zip(logits, texts, rows, strict=True):
            start = _start(row["labels"])
            losses.append(
                F.cross_entropy(one[start - 1 : PREFIX + len(text) - 1], torch.tensor(text[start - PREFIX :]))
            )
        return losses

    def step(self, rows: Sequence[Row]) -> float:
        """Train on ``rows``; their loss."""
        loss = torch.stack(self.losses(rows)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


class PublishedMdpo:
    """One step: six forwards, one pair.

    Args:
        policy: trains LoRA and projector; a whole copy of it is the reference.
        eos: pads.
    """

    def __init__(self, policy: PublishedModel, eos: int) -> None:
        for part in (policy.stem, policy.network):
            part.requires_grad_(False)
        self.policy, self.eos = policy, eos
        self.reference = copy.deepcopy(policy).requires_grad_(False).eval()
        self.optimizer, self.schedule = _optimizer(policy, DPO_RATE)

    def train(self) -> None:
        """Dropout on; the frozen encoder stays as it is."""
        self.policy.train()
        self.policy.network.eval()

    def loss(self, row: Row) -> Tensor:
        """The three terms of one pair; ``row`` is prepared for dpo and has an epoch."""
        clip = _clips([row])
        degraded = torch.from_numpy(degrade(clip[0].numpy(), row["sample_id"], row["epoch"]))[None]
        asked = ((clip, ""), (clip, "rejected_"), (degraded, ""))
        chosen, rejected, without = (self._logp(self.policy, row, answer, sound) for sound, answer in asked)
        with torch.no_grad():
            ref_chosen, ref_rejected, ref_without = (
                self._logp(self.reference, row, answer, sound) for sound, answer in asked
            )
        preferred = F.logsigmoid(BETA * ((chosen - rejected) - (ref_chosen - ref_rejected)))
        conditional = F.logsigmoid(BETA * ((chosen - without) - (ref_chosen - ref_without)))
        anchor = F.logsigmoid(BETA * (chosen - ref_chosen) - MARGIN)
        return -(preferred + CONDITIONAL * conditional + ANCHOR * anchor)

    def step(self, row: Row) -> float:
        """Train on one pair; its loss."""
        loss = self.loss(row)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def _logp(self, model: PublishedModel, row: Row, answer: str, clip: Tensor) -> Tensor:
        """Mean log-probability of a response's tokens; one forward."""
        text, start = row[f"{answer}input_ids"][PREFIX:], _start(row[f"{answer}labels"])
        ids, mask = padded([text], self.eos)
        logps = model.logits(clip, ids, mask)[0].log_softmax(dim=-1)
        wanted = torch.tensor(text[start - PREFIX :])
        return logps[start - 1 : PREFIX + len(text) - 1].gather(1, wanted[:, None]).mean()


def train_sft(pace: Pace, samples: int = COUNT) -> None:
    """The recipe's side of ``train/sft``."""
    model, rows, eos = _parts("sft", samples)
    recipe = PublishedSft(model, eos)
    batches = cycle([rows[start : start + BATCH] for start in range(0, len(rows), BATCH)])
    going = pace.ready()
    while going:
        batch = next(batches)
        recipe.step(batch)
        going = pace.step(len(batch), sum(len(row["input_ids"]) for row in batch))


def train_dpo(pace: Pace, samples: int = COUNT) -> None:
    """The recipe's side of ``train/dpo``."""
    model, rows, eos = _parts("dpo", samples)
    recipe = PublishedMdpo(model, eos)
    recipe.train()
    going, pairs = pace.ready(), cycle(rows)
    while going:
        row = next(pairs)
        recipe.step(row)
        going = pace.step(1, 2 * len(row["input_ids"]) + len(row["rejected_input_ids"]))


def _parts(stage: str, samples: int) -> tuple[PublishedModel, list[Row], int]:
    """The embedded model as published, and the rows, tokenised ahead."""
    torch.manual_seed(0)
    settings = ModelSettings(projector_dropout=0.5)
    ours, processor = build_model(settings)
    prepare = Prepare(processor, 256, answers_of(stage))
    rows = [row | prepare(row) | {"epoch": 0} for row in training_pairs(samples)]
    return PublishedModel(ours, settings), rows, int(processor.tokenizer.eos_token_id)


def _optimizer(model: PublishedModel, rate: float) -> tuple[torch.optim.Optimizer, Any]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    return optimizer, get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)


def _clips(rows: Sequence[Row]) -> Tensor:
    """(N, 64, 218): of rows with one recording each."""
    return torch.cat([torch.from_numpy(read_features(row).copy()) for row in rows])


def _start(labels: Sequence[int]) -> int:
    """Where the response begins."""
    return next(place for place, label in enumerate(labels) if label != -100)
