"""Log-probabilities of response tokens only.

TRL's trainers call ``model(..., labels=labels, fused_lm_head=True)`` for per-token log-probabilities. Their own head
scores every position on a CPU; ours scores the labelled ones, which in our data are a third or less, some at a time,
so that a vocabulary of 262,144 needs no more memory than one of 49,152.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stetholm.model import StethoLMForConditionalGeneration

_NUMBERS = {"cpu": 2**24}
"""Logits (tokens x vocabulary) at a time, by device: 64 MiB in fp32 on a CPU, 256 MiB on others, which want larger
matrices. There are three such matrices at the most."""


class Scores(NamedTuple):
    """Of K tokens, (K,) each: log-probability, and for the log lines entropy, mean logit and whether it is the top."""

    log_probs: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor


def install_response_head(model: StethoLMForConditionalGeneration) -> None:
    """Replace TRL's fused forward of ``model`` by one that scores labelled positions only.

    With ``fused_lm_head=True`` the forward returns ``log_probs``, ``entropy``, ``mean_logits`` and ``is_top1``, each
    (N, T-1) and 0 where there is no label, and ``label_mask`` (N, T-1). Without it, the class's own forward runs.
    """
    original = type(model).forward

    # Keep the original signature: `generate` validates its model kwargs against it.
    @functools.wraps(original)
    def forward(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        return _scored(model, *args, **kwargs) if fused_lm_head else original(model, *args, **kwargs)

    model.forward = forward  # type: ignore[method-assign]


def _scored(model: StethoLMForConditionalGeneration, *, labels: Tensor, **kwargs: Any) -> SimpleNamespace:
    kwargs.pop("num_items_in_batch", None)
    hidden = model.base_model(**{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    mask = targets != -100
    scores = score_tokens(model, hidden[mask], targets[mask])
    # masked_scatter keeps the graph whole even where no position is labelled.
    log_probs, entropy, mean_logits, is_top1 = (x.new_zeros(mask.shape).masked_scatter(mask, x) for x in scores)
    return SimpleNamespace(
        log_probs=log_probs, entropy=entropy, mean_logits=mean_logits, is_top1=is_top1.bool(), label_mask=mask
    )


def score_tokens(model: StethoLMForConditionalGeneration, hidden: Tensor, targets: Tensor) -> Scores:
    """Score ``targets`` (K,) given the states ``hidden`` (K, d) that predict them.

    The head is frozen in every stage. So the gradient of a log-probability by its state is known as soon as its
    logits are, and no logits are kept: the backward pass is one multiplication of (K, d). Where the head trains, or
    ZeRO-3 holds only a part of it outside of its own forward, the logits are computed again in the backward pass.
    """
    head = model.get_output_embeddings()
    weight = head.weight
    if weight.requires_grad or hasattr(weight, "ds_id"):
        parts = [
            checkpoint(_score, model, part, wanted, use_reentrant=False) if torch.is_grad_enabled() else
            _score(model, part, wanted)
            for part, wanted in _pieces(hidden, targets, len(weight) or model.config.text.vocab_size)
        ]  # fmt: skip
        return Scores(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    return Scores(*_FrozenHead.apply(hidden, targets, model))


def _pieces(hidden: Tensor, targets: Tensor, vocabulary: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, _NUMBERS.get(hidden.device.type, 2**26) // vocabulary)
    for start in range(0, max(len(targets), 1), rows):
        yield hidden[start : start + rows], targets[start : start + rows]


def _score(model: StethoLMForConditionalGeneration, hidden: Tensor, targets: Tensor) -> Scores:
    logits = model.logits(hidden).float()
    log_probs = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    with torch.no_grad():
        return Scores(log_probs, *_facts(logits, logits.softmax(dim=-1), logits.logsumexp(dim=-1), targets))


def _facts(logits: Tensor, probabilities: Tensor, normaliser: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Entropy, mean logit, and 1.0 where the target is the most probable token."""
    entropy = normaliser - torch.linalg.vecdot(probabilities, logits)
    is_top1 = (logits.argmax(dim=-1) == targets).float() if len(targets) else targets.float()
    return entropy, logits.mean(dim=-1), is_top1


class _FrozenHead(torch.autograd.Function):
    """Scores by a head that does not train, and the slope of each log-probability by its state.

    For logits z = W h, of which a soft cap c makes c tanh(z / c): d log p(y) / d h = ((onehot(y) - p) * (1 - (z/c)^2)) W
    with z after the cap.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, model: StethoLMForConditionalGeneration) -> tuple[Any, ...]:
        sloped = ctx.needs_input_grad[0]
        parts, slopes = [], []
        for part, wanted in _pieces(hidden, targets, len(model.get_output_embeddings().weight)):
            logits = model.logits(part).float()
            normaliser = logits.logsumexp(dim=-1)
            probabilities = (logits - normaliser[:, None]).exp_()
            log_probs = logits.gather(1, wanted[:, None])[:, 0] - normaliser
            parts.append((log_probs, *_facts(logits, probabilities, normaliser, wanted)))
            if sloped:
                slopes.append(_slope(model, logits, probabilities, wanted))
        if sloped:
            ctx.save_for_backward(torch.cat(slopes))
        fields = tuple(torch.cat(field) for field in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*fields[1:])
        return fields

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (slopes,) = ctx.saved_tensors
        return gradients[0][:, None].to(slopes.dtype) * slopes, None, None


def _slope(
    model: StethoLMForConditionalGeneration, logits: Tensor, probabilities: Tensor, targets: Tensor
) -> Tensor:
    """(k, d) gradient of each target's log-probability by its state. Overwrites ``probabilities``."""
    weight = model.get_output_embeddings().weight
    by_logit = probabilities.neg_().scatter_add_(1, targets[:, None], torch.ones_like(probabilities[:, :1]))
    cap = getattr(model.config.text_config, "final_logit_softcapping", None)
    if cap is not None:
        by_logit *= 1 - (logits / cap).square()
    return by_logit.to(weight.dtype) @ weight
