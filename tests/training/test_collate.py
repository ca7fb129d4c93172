"""Rows to the tensors of a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stetholm.errors import UserError
from stetholm.training.collate import Collate, Prepare, answers_of
from tests.serving.tiny import tiny_model


@pytest.fixture(scope="module")
def processor():
    return tiny_model()[1]


def row(processor, recordings=1, response="The heart sound is normal.", stage="sft", seed=0):
    features = np.random.default_rng(seed).random((recordings, 64, 218), dtype=np.float32)
    base = {
        "sample_id": f"s{seed}",
        "epoch": 0,
        "task": "Report",
        "dataset": "heart-test",
        "instruction": "What is heard?",
        "response": response,
        "chosen": "A murmur.",
        "rejected": "I cannot tell at all.",
        "recordings": recordings,
        "features": features.tobytes(),
    }
    return base | Prepare(processor, 256, answers_of(stage))(base)


def test_labels_are_the_response_and_its_end(processor):
    one = row(processor)
    wanted = [*processor.tokenizer("The heart sound is normal.")["input_ids"], processor.tokenizer.eos_token_id]
    assert [label for label in one["labels"] if label != -100] == wanted
    assert one["input_ids"][-len(wanted) :] == wanted


def test_too_long_a_sample_is_named(processor):
    with pytest.raises(UserError, match=r"sample s7 .* more than train.max_tokens=40"):
        Prepare(processor, 40, answers_of("sft"))({**row(processor, seed=7), "response": "x" * 100})


def test_align_knows_whose_each_recording_is(processor):
    batch = Collate("align", processor)([row(processor, 1), row(processor, 2, seed=1)])
    assert batch["rows"].tolist() == [0, 1, 1]
    assert batch["input_features"].shape == (3, 64, 218)
    assert len(batch["responses"]) == 2


def test_dpo_stacks_chosen_rejected_chosen_and_clean_degraded(processor):
    rows = [row(processor, 1, stage="dpo"), row(processor, 2, stage="dpo", seed=1)]
    batch = Collate("dpo", processor)(rows)
    ids, labels = batch["input_ids"], batch["labels"]
    assert len(ids) == 6
    assert torch.equal(ids[:2], ids[4:]) and torch.equal(labels[:2], labels[4:])
    clean, degraded = batch["input_features"].chunk(2)
    assert clean.shape == (3, 64, 218)
    assert all(not torch.equal(a, b) for a, b in zip(clean, degraded, strict=True))
    again = Collate("dpo", processor)(rows)["input_features"]
    assert torch.equal(again, batch["input_features"])  # seeded by sample and epoch
    later = Collate("dpo", processor)([one | {"epoch": 1} for one in rows])["input_features"]
    assert not torch.equal(later, again)


@pytest.mark.parametrize("stage", ["align", "sft", "dpo"])
def test_no_rows_give_a_batch_that_trains_nothing(processor, stage):
    batch = Collate(stage, processor)([])
    assert (batch["labels"] == -100).all()
    assert len(batch["input_features"]) == (2 if stage == "dpo" else 1)


def test_answers_of_dpo():
    assert answers_of("dpo", "reference") == {"": "response", "rejected_": "rejected"}
