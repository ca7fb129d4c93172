"""Which of the training workers this process is; the only one where torch.distributed is not initialised."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")


def join_group(use_gpu: bool) -> None:
    """Be one of the processes that train together, as DeepSpeed needs it; call it before a model is built.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT say which, as torchrun sets them. Under Ray Train the
    group is there already; without any of this the process trains alone.
    """
    if not use_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # after that, as it looks for an accelerator when it is imported

    # Its shared-memory kernels are compiled on first use: a minute, and a worker killed meanwhile leaves a lock
    # that all later ones wait for. Gloo does what is needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized() and "WORLD_SIZE" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(free_port())
    deepspeed.init_distributed(dist_backend="nccl" if use_gpu else "gloo", verbose=False)


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
    return any_of_each([mine])[0]


def any_of_each(mine: Sequence[bool]) -> list[bool]:
    """For each place, whether any rank passes True there; one collective call for all of them."""
    if world_size() == 1:
        return list(mine)
    flags = torch.tensor(mine, dtype=torch.int32)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=_messages())
    return [bool(flag) for flag in flags.tolist()]


def from_all(mine: T) -> list[T]:
    """What each rank passes, in the order of ranks, on every rank; picklable things; a collective call."""
    if world_size() == 1:
        return [mine]
    parts: list[T] = [mine] * world_size()
    dist.all_gather_object(parts, mine, group=_messages())
    return parts


def rows_from_all(mine: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Rows (n, d) of each rank, in the order of ranks, on every rank, without gradient; a collective call.

    Args:
        mine: this rank's, on its device.
        counts: how many each rank has; known to all.
    """
    if world_size() == 1:
        return [mine.detach()]
    padded = F.pad(mine.detach(), (0, 0, 0, max(counts) - len(mine))).contiguous()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


def _messages() -> Any:
    """The group for small messages between processors; a collective call the first time.

    On NCCL one of gloo beside it: what goes through a GPU is there only when the GPU has done the work before it, so
    reading it would hold up each step.
    """
    return _beside(dist.group.WORLD) if dist.get_backend() == "nccl" else None


@cache
def _beside(world: Any) -> Any:
    return dist.new_group(backend="gloo")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
