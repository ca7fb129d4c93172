"""The response head against the plain logits."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stetholm.training.response_head import NUMBERS_AT_A_TIME, install_response_head, score_tokens
from tests.serving.tiny import tiny_model


@pytest.fixture(params=["head trains", "head frozen", "soft cap"])
def model(request):
    found = tiny_model()[0].requires_grad_(True)
    if request.param != "head trains":
        found.lm_head.requires_grad_(False)
    if request.param == "soft cap":
        found.config.text_config.final_logit_softcapping = 2.0
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
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(scored.entropy, entropy * mask, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scored.mean_logits, logits.mean(-1) * mask, atol=1e-6, rtol=1e-4)


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


def test_gradients_of_single_tokens(model):
    """Each token's own weight reaches its own state, as a preference loss needs it."""
    inputs = batch()
    weights = torch.linspace(-1, 2, 33).reshape(3, 11)
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    labels = inputs["labels"][:, 1:]
    full = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
    (full * weights).sum().backward()
    name, parameter = next((n, p) for n, p in model.named_parameters() if n.endswith("q_proj.weight"))
    expected = parameter.grad.clone()
    model.zero_grad()
    (model(**inputs, fused_lm_head=True).log_probs * weights).sum().backward()
    torch.testing.assert_close(parameter.grad, expected, msg=name)


def test_many_tokens_are_scored_in_pieces(model, monkeypatch):
    inputs = batch()

    def scored():
        model.zero_grad()
        log_probs = model(**inputs, fused_lm_head=True).log_probs
        log_probs.square().sum().backward()
        return log_probs, model.model.language_model.layers[0].self_attn.q_proj.weight.grad.clone()

    whole = scored()
    monkeypatch.setitem(NUMBERS_AT_A_TIME, "cpu", 4 * 257)
    torch.testing.assert_close(scored(), whole)


@pytest.mark.parametrize("trains", [False, True])
def test_a_vocabulary_of_262144_stays_within_bounds(trains):
    """The largest tensor that scoring makes is a piece's logits, and none of that size is kept for the backward."""
    model, vocabulary, tokens = tiny_model()[0], 2**18, 300
    model.lm_head = torch.nn.Linear(32, vocabulary, bias=False).requires_grad_(trains)
    hidden = torch.randn(tokens, 32, requires_grad=True)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with _Largest() as made, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = score_tokens(model, hidden, torch.arange(tokens))
        assert sum(kept) <= 4 * tokens * 32
        scores.log_probs.sum().backward()
    assert hidden.grad is not None
    assert made.numbers <= max(NUMBERS_AT_A_TIME["cpu"], vocabulary * 32) < tokens * vocabulary


class _Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_no_labels_still_depend_on_the_parameters(model):
    inputs = batch()
    inputs["labels"].fill_(-100)
    loss = model(**inputs, fused_lm_head=True).log_probs.sum()
    loss.backward()
    assert loss.item() == 0.0
    assert any(p.grad is not None for p in model.model.language_model.parameters())
