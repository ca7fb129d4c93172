"""Two processes of one gloo group, as two training workers are."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stetholm.training.ranks import free_port, join_group


def two_ranks(work: Callable[..., None], *args: Any) -> dict[Any, Any]:
    """What ``work(rank, results, *args)`` of both put into ``results``; what they raise is raised here."""
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (free_port(), work, results, args), nprocs=2)
        return dict(results)


def _rank(number: int, port: int, work: Callable[..., None], results: Any, args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TRANSFORMERS_VERBOSITY": "error"}
    join_group(use_gpu=False)
    torch.set_num_threads(1)
    work(number, results, *args)
    # One that ends while the other is still in a collective takes it down: gloo aborts on a closed connection.
    dist.barrier()
    dist.destroy_process_group()
