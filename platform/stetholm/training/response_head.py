"""Log-probabilities of response tokens only.

TRL's trainers call ``model(..., labels=labels, fused_lm_head=True)`` for per-token log-probabilities. Their own head
scores every position on a CPU; ours scores the labelled ones, which in our data are a third or less.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

_CHUNK = 1024  # tokens scored at once: bounds the logits at 1024 x vocabulary


def install_response_head(model: PreTrainedModel) -> None:
    """Replace TRL's fused forward of ``model`` by one that scores labelled positions only.

    With ``fused_lm_head=True`` the forward returns ``log_probs``, ``entropy``, ``mean_logits`` and ``is_top1``, each
    (N, T-1) and 0 where there is no label, and ``label_mask`` (N, T-1). Without it, the class's own forward runs.
    """
    original = type(model).forward

    # Keep the original signature: `generate` validates its model kwargs against it.
    @functools.wraps(original)
    def forward(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        return _scored(model, *args, **kwargs) if fused_lm_head else original(model, *args, **kwargs)

    model.forward = forward


def _scored(model: PreTrainedModel, *, labels: Tensor, **kwargs: Any) -> SimpleNamespace:
    kwargs.pop("num_items_in_batch", None)
    hidden = model.base_model(**{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    mask = targets != -100
    fields = [torch.cat(parts) for parts in zip(*_chunks(model, hidden[mask], targets[mask]), strict=True)]
    # masked_scatter keeps the graph whole even where no position is labelled.
    log_probs, entropy, mean_logits, is_top1 = (x.new_zeros(mask.shape).masked_scatter(mask, x) for x in fields)
    return SimpleNamespace(
        log_probs=log_probs, entropy=entropy, mean_logits=mean_logits, is_top1=is_top1.bool(), label_mask=mask
    )


def _chunks(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, ...]]:
    head = model.get_output_embeddings()
    for start in range(0, max(len(targets), 1), _CHUNK):
        part, wanted = hidden[start : start + _CHUNK], targets[start : start + _CHUNK]
        if len(targets) > _CHUNK and torch.is_grad_enabled():
            yield checkpoint(_score, head, part, wanted, use_reentrant=False)
        else:
            yield _score(head, part, wanted)


def _score(head: torch.nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = head(hidden).float()
    log_all = logits.log_softmax(dim=-1)
    log_probs = log_all.gather(1, targets[:, None])[:, 0]
    with torch.no_grad():
        entropy = -(log_all.exp() * log_all).sum(dim=-1)
        is_top1 = (logits.argmax(dim=-1) == targets).float() if len(targets) else targets.float()
    return log_probs, entropy, logits.detach().mean(dim=-1), is_top1
