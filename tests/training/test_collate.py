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
    ids, labels, index = batch["input_ids"], batch["labels"], batch["audio_index"]
    assert len(ids) == 6
    assert torch.equal(ids[:2], ids[4:]) and torch.equal(labels[:2], labels[4:])
    assert batch["input_features"].shape == (6, 64, 218)  # three recordings, clean and degraded
    clean, again, degraded = batch["input_features"][index].chunk(3)
    assert torch.equal(clean, again)
    assert all(not torch.equal(a, b) for a, b in zip(clean, degraded, strict=True))


def test_degradations_are_of_the_sample_and_the_epoch(processor):
    """Whoever collates them, with whom, in whichever order."""
    rows = [row(processor, 1, stage="dpo", seed=seed) for seed in range(3)]

    def degraded(rows):
        batch = Collate("dpo", processor)(rows)
        sounds = batch["input_features"][batch["audio_index"]].chunk(3)[2]
        return {one["sample_id"]: sound for one, sound in zip(rows, sounds, strict=True)}

    together, alone = degraded(rows), degraded(rows[1:2])
    torch.testing.assert_close(degraded(rows[::-1]), together, rtol=0, atol=0)
    assert torch.equal(alone["s1"], together["s1"])
    later = degraded([one | {"epoch": 1} for one in rows])
    assert all(not torch.equal(later[name], together[name]) for name in together)


@pytest.mark.parametrize(("chosen", "text"), [("candidate", "A murmur."), ("reference", "The heart sound is normal.")])
def test_chosen_is_the_candidate_or_the_reference_answer(processor, chosen, text):
    base = row(processor, stage="dpo")
    prepared = base | Prepare(processor, 256, answers_of("dpo", chosen))(base)
    labels = Collate("dpo", processor)([prepared])["labels"]
    said = [processor.tokenizer.decode(line[line != -100], skip_special_tokens=True) for line in labels]
    assert said == [text, "I cannot tell at all.", text]


def test_a_recording_with_several_questions_is_encoded_once(processor):
    first, second, other = (row(processor, response=text, seed=seed) for text, seed in [("A", 0), ("B", 0), ("C", 1)])
    batch = Collate("sft", processor)([first, other, second])
    assert len(batch["input_features"]) == 2
    assert batch["audio_index"].tolist() == [0, 1, 0]
    model = tiny_model()[0]
    known = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    each = batch["input_features"][batch["audio_index"]]
    once = model(**known, input_features=batch["input_features"], audio_index=batch["audio_index"]).loss
    torch.testing.assert_close(once, model(**known, input_features=each).loss)


def test_references_computed_ahead_come_in_the_order_of_the_rows(processor):
    rows = [row(processor, stage="dpo"), row(processor, stage="dpo", seed=1) | {"epoch": 2}]
    ahead = {(0, "s0"): (-1.0, -2.0, -3.0), (2, "s1"): (-4.0, -5.0, -6.0)}
    batch = Collate("dpo", processor, ahead)(rows)
    assert batch["reference"].tolist() == [-1, -4, -2, -5, -3, -6]
    assert Collate("dpo", processor, ahead)([])["reference"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("stage", ["align", "sft", "dpo"])
def test_no_rows_give_a_batch_that_trains_nothing(processor, stage):
    batch = Collate(stage, processor)([])
    assert (batch["labels"] == -100).all()
    assert len(batch["input_features"]) == 1


def test_answers_of_dpo():
    assert answers_of("dpo", "reference") == {"": "response", "rejected_": "rejected"}
