"""The response head against the plain logits."""

from __future__ import annotations

import pytest
import torch

from stetholm.training.response_head import install_response_head
from tests.serving.tiny import tiny_model


@pytest.fixture
def model():
    found = tiny_model()[0].requires_grad_(True)
    install_response_head(found)
    return found


def batch(rows=3, length=12):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (rows, length), generator=generator)
    labels = ids.clone()
    labels[:, :7] = -100
    labels[0, 9:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_equals_the_full_logits_where_there_is_a_label(model):
    inputs = batch()
    scored = model(**inputs, fused_lm_head=True)
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    labels = inputs["labels"][:, 1:]
    mask = labels != -100
    full = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    assert torch.equal(scored.label_mask, mask)
    torch.testing.assert_close(scored.log_probs, full * mask)
    assert torch.equal(scored.is_top1, (logits.argmax(-1) == labels) & mask)


def test_gradient_is_that_of_the_model_s_own_loss(model):
    inputs = batch()
    own = model(**inputs).loss
    own.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    scored = model(**inputs, fused_lm_head=True)
    (-scored.log_probs.sum() / scored.label_mask.sum()).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_many_tokens_are_scored_in_pieces(model, monkeypatch):
    inputs = batch()
    whole = model(**inputs, fused_lm_head=True).log_probs
    monkeypatch.setattr("stetholm.training.response_head._CHUNK", 4)
    torch.testing.assert_close(model(**inputs, fused_lm_head=True).log_probs, whole)


def test_no_labels_still_depend_on_the_parameters(model):
    inputs = batch()
    inputs["labels"].fill_(-100)
    loss = model(**inputs, fused_lm_head=True).log_probs.sum()
    loss.backward()
    assert loss.item() == 0.0
    assert any(p.grad is not None for p in model.model.language_model.parameters())
