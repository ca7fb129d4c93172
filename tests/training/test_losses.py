"""The pure losses against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.training.losses import contrastive_loss, mdpo_loss, mean_logps, scale_loss, text_groups

logps = st.lists(st.floats(-8, 0), min_size=6, max_size=6)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(logps, st.floats(0.05, 2), st.floats(0, 2), st.floats(0, 2), st.floats(-1, 1))
def test_mdpo_is_the_published_formula(values, beta, conditional, anchor, margin):
    pc, pr, pd, rc, rr, rd = values
    expected = (
        -math.log(_sigmoid(beta * ((pc - pr) - (rc - rr))))
        - conditional * math.log(_sigmoid(beta * ((pc - pd) - (rc - rd))))
        - anchor * math.log(_sigmoid(beta * (pc - rc) - margin))
    )
    tensors = [torch.tensor([value], dtype=torch.float64) for value in values]
    loss = mdpo_loss(
        *tensors, beta=beta, lambda_conditional=conditional, lambda_anchor=anchor, anchor_margin=margin
    ).loss
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_mdpo_pulls_the_right_way():
    policy = [torch.full((2,), -1.0, requires_grad=True) for _ in range(3)]
    reference = [torch.full((2,), -1.0) for _ in range(3)]
    mdpo_loss(*policy, *reference).loss.backward()
    chosen, rejected, degraded = (tensor.grad for tensor in policy)
    assert (chosen < 0).all()  # more likely: the loss falls
    assert (rejected > 0).all()
    assert (degraded > 0).all()


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(0, 100))
def test_contrastive_is_least_where_audio_matches_text(n, seed):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(n, 8, generator=generator)
    groups = torch.arange(n)
    matched = contrastive_loss(text - text.mean(0), text, groups, 0.05)
    swapped = contrastive_loss((text - text.mean(0)).roll(1, 0), text, groups, 0.05)
    assert matched < swapped


def test_equal_texts_are_positives_of_each_other():
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    audio = text - text.mean(0)
    groups = text_groups(["a", "a", "b", "b"])
    assert groups.tolist() == [0, 0, 1, 1]
    # Its least value: each row's two positives share the probability.
    assert contrastive_loss(audio, text, groups, 0.01).item() == pytest.approx(math.log(2), abs=1e-3)


def test_mean_logps_counts_response_tokens_only():
    labels = torch.tensor([[-100, -100, 5, 6], [-100, 7, -100, -100]])
    token_logps = torch.tensor([[0.0, -1.0, -3.0], [-2.0, 0.0, 0.0]])
    assert mean_logps(token_logps, labels).tolist() == [-2.0, -2.0]


def test_scale_loss_is_nothing_at_the_norm_of_text_and_the_same_on_both_sides():
    prefix = torch.nn.functional.normalize(torch.randn(3, 4, 8), dim=-1)
    norm = torch.tensor(2.5)
    assert scale_loss(prefix * 2.5, norm) < 1e-9
    torch.testing.assert_close(scale_loss(prefix * 10, norm), scale_loss(prefix * 0.625, norm))
    assert torch.isfinite(scale_loss(prefix * 0, norm))
