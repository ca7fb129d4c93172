"""Which of the training workers this process is; the only one where torch.distributed is not initialised."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """From 0 to ``world_size() - 1``."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes and shows what all have done."""
    return rank() == 0


def any_of_all(mine: bool) -> bool:
    """True if any rank passes True; a collective call."""
    if not dist.is_initialized():
        return mine
    flag = torch.tensor([int(mine)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def from_all(mine: T) -> list[T]:
    """What each rank passes, in the order of ranks, on every rank; picklable things; a collective call."""
    if not dist.is_initialized():
        return [mine]
    parts: list[T] = [mine] * world_size()
    dist.all_gather_object(parts, mine)
    return parts
