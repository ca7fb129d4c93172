"""Log-probabilities of response tokens only.

TRL's trainers call ``model(..., labels=labels, fused_lm_head=True)`` for per-token log-probabilities. Their own head
scores every position on a CPU; ours scores the labelled ones, which in our data are a third or less, some at a time,
so that a vocabulary of 262,144 needs no more memory than one of 49,152.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stetholm.model import StethoLMForConditionalGeneration
from stetholm.model.lora import gathered

NUMBERS_AT_A_TIME = {"cpu": 2**24, "cuda": 2**26}
"""Logits (tokens x vocabulary) at a time, by device: 64 MiB in fp32 on a CPU, 256 MiB on a GPU, which wants larger
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

    patched: Any = model
    patched.forward = forward


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
    logits are, and no logits are kept: the backward pass is one multiplication of (K, d). For a head that trains, the
    logits are computed again in the backward pass.
    """
    head = _Head.of(model)
    if not head.weight.requires_grad:
        with gathered([part for part in (head.weight, head.bias) if part is not None]):
            return Scores(*_FrozenHead.apply(hidden, targets, head))
    score: Any = partial(checkpoint, _score, use_reentrant=False) if torch.is_grad_enabled() else _score
    parts = [score(head, *piece) for piece in head.pieces(hidden, targets)]
    return Scores(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


@dataclass(frozen=True)
class _Head:
    """Weight (vocabulary, d), bias, and Gemma's soft cap of a language model's head.

    Used as it is, not as a module: ZeRO-3 would take the weight away again after the module's forward.
    """

    weight: Tensor
    bias: Tensor | None
    cap: float | None

    @classmethod
    def of(cls, model: StethoLMForConditionalGeneration) -> _Head:
        # As attributes, ZeRO-3 would gather them now and once more in the backward pass.
        found = dict(model.get_output_embeddings().named_parameters(recurse=False))
        cap = getattr(model.config.text_config, "final_logit_softcapping", None)
        return cls(found["weight"], found.get("bias"), cap)

    def logits(self, hidden: Tensor) -> Tensor:
        """(k, d) -> (k, vocabulary), float32."""
        logits = F.linear(hidden, self.weight, self.bias).float()
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def pieces(self, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """As many states and targets at a time as their logits may take room."""
        rows = max(1, NUMBERS_AT_A_TIME.get(hidden.device.type, 2**26) // len(self.weight))
        for start in range(0, max(len(targets), 1), rows):
            yield hidden[start : start + rows], targets[start : start + rows]

    def slope(self, logits: Tensor, probabilities: Tensor, targets: Tensor) -> Tensor:
        """(k, d) gradient of each target's log-probability by its state. Overwrites ``probabilities``."""
        falls = probabilities.scatter_add_(1, targets[:, None], probabilities.new_full((len(targets), 1), -1.0))
        if self.cap is not None:
            falls *= 1 - (logits / self.cap).square()
        return (falls.to(self.weight.dtype) @ self.weight).neg_()


def _score(head: _Head, hidden: Tensor, targets: Tensor) -> Scores:
    logits = head.logits(hidden)
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

    For logits z = W h: d log p(y) / d h = (onehot(y) - p) W. Where a soft cap c makes z = c tanh(W h / c) of them, what
    stands before W is multiplied by 1 - (z / c)^2.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: _Head) -> tuple[Any, ...]:
        sloped = ctx.needs_input_grad[0]
        parts, slopes = [], []
        for part, wanted in head.pieces(hidden, targets):
            logits = head.logits(part)
            normaliser = logits.logsumexp(dim=-1)
            probabilities = (logits - normaliser[:, None]).exp_()
            log_probs = logits.gather(1, wanted[:, None])[:, 0] - normaliser
            parts.append((log_probs, *_facts(logits, probabilities, normaliser, wanted)))
            if sloped:
                slopes.append(head.slope(logits, probabilities, wanted))
        if sloped:
            ctx.save_for_backward(torch.cat(slopes))
        fields = tuple(torch.cat(field) for field in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*fields[1:])
        return fields

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (slopes,) = ctx.saved_tensors
        return gradients[0][:, None].to(slopes.dtype) * slopes, None, None
