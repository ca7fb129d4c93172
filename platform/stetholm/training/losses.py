"""The loss functions of the three stages, pure: tensors in, tensors out."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class MdpoLoss(NamedTuple):
    """The total and its three terms, each a scalar."""

    loss: Tensor
    dpo: Tensor
    conditional: Tensor
    anchor: Tensor


def mdpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    policy_degraded: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    reference_degraded: Tensor,
    *,
    beta: float = 0.5,
    lambda_conditional: float = 0.5,
    lambda_anchor: float = 1.5,
    anchor_margin: float = 0.5,
) -> MdpoLoss:
    """Multimodal DPO (StethoLM, arXiv 2603.00355, after mDPO, arXiv 2406.11839).

    Args:
        policy_chosen: (N,) length-averaged log-probability of the chosen response under the clean audio.
        policy_rejected: (N,) the same of the rejected response.
        policy_degraded: (N,) the same of the chosen response under the degraded audio.
        reference_chosen: (N,) as policy_chosen, by the frozen SFT model; so the other two.
        reference_rejected: (N,).
        reference_degraded: (N,).
        beta: strength of the pull towards the reference.
        lambda_conditional: weight of the term that asks for the clean audio.
        lambda_anchor: weight of the term that keeps the chosen response likely.
        anchor_margin: what the anchor asks beyond the reference.
    """
    dpo = dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    conditional = conditional_loss(policy_chosen, policy_degraded, reference_chosen, reference_degraded, beta)
    anchor = anchor_loss(policy_chosen, reference_chosen, beta, anchor_margin)
    return MdpoLoss(dpo + lambda_conditional * conditional + lambda_anchor * anchor, dpo, conditional, anchor)


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> Tensor:
    """L_dpo: the chosen response over the rejected one, relative to the reference. Arguments as :func:`mdpo_loss`."""
    margin = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    return -F.logsigmoid(beta * margin).mean()


def conditional_loss(
    policy_chosen: Tensor, policy_degraded: Tensor, reference_chosen: Tensor, reference_degraded: Tensor, beta: float
) -> Tensor:
    """L_cond: the clean audio over the degraded one, for the same response."""
    margin = (policy_chosen - policy_degraded) - (reference_chosen - reference_degraded)
    return -F.logsigmoid(beta * margin).mean()


def anchor_loss(policy_chosen: Tensor, reference_chosen: Tensor, beta: float, margin: float) -> Tensor:
    """L_anchor: the chosen response must not become less likely than under the reference."""
    return -F.logsigmoid(beta * (policy_chosen - reference_chosen) - margin).mean()


def scale_loss(prefix: Tensor, norm: Tensor) -> Tensor:
    """Mean squared log ratio of the norms of prefix tokens to ``norm``: 0 where all have it.

    A contrastive loss of cosines leaves the scale of what it trains open, and it drifts far above that of embedded
    text, where a language model hardly moves it.

    Args:
        prefix: (R, k, d) prefix tokens.
        norm: scalar, the norm of the language model's embedded text tokens.
    """
    return (prefix.norm(dim=-1).clamp(min=1e-6) / norm).log().square().mean()


def contrastive_loss(audio: Tensor, text: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE in which all pairs of one group are positives.

    CLIP's loss (arXiv 2103.00020) with the several positives of supervised contrastive learning
    (arXiv 2004.11362, L_out): a batch of recordings often shares a response word for word.

    Args:
        audio: (N, d) projected audio.
        text: (N, d) text representations, no gradient needed.
        groups: (N,) integers; equal where the texts are equal.
        temperature: divides the cosine similarities.
    """
    # The mean direction of a language model's text space says nothing about the text: take it out.
    text = F.normalize(text - text.mean(dim=0, keepdim=True), dim=-1)
    audio = F.normalize(audio, dim=-1)
    logits = audio @ text.T / temperature
    positives = (groups[:, None] == groups[None, :]).to(logits.dtype)
    targets = positives / positives.sum(dim=1, keepdim=True)
    to_text = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    to_audio = -(targets * F.log_softmax(logits.T, dim=1)).sum(dim=1).mean()
    return (to_text + to_audio) / 2


def mean_logps(token_logps: Tensor, labels: Tensor) -> Tensor:
    """Length-averaged log-probabilities of responses.

    Args:
        token_logps: (N, T-1) log-probability of each next token, 0 where it is not labelled.
        labels: (N, T) token ids, -100 where there is no response.

    Returns:
        (N,) means over each row's response tokens.
    """
    return token_logps.sum(dim=1) / response_lengths(labels)


def response_lengths(labels: Tensor) -> Tensor:
    """(N,) response tokens of each row of ``labels`` (N, T), at least 1."""
    return (labels[:, 1:] != -100).sum(dim=1).clamp(min=1)


def text_groups(texts: list[str]) -> Tensor:
    """(N,) one integer a distinct text, for :func:`contrastive_loss`."""
    order = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    return torch.tensor([order[text] for text in texts])
