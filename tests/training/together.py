"""Groups that train: two processes of one gloo group, as two training workers are; this process alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stetholm.training.ranks import free_port, join_group


def two_ranks(work: Callable[..., None], *args: Any) -> dict[Any, Any]:
    """What ``work(rank, results, *args)`` of both put into ``results``; what they raise is raised here."""
    return _ranks(2, work, *args)


def one_rank(work: Callable[..., None], *args: Any) -> dict[Any, Any]:
    """The same of one, in a process of its own too: DeepSpeed's ZeRO-3 changes torch for all that comes after it."""
    return _ranks(1, work, *args)


def _ranks(count: int, work: Callable[..., None], *args: Any) -> dict[Any, Any]:
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (count, free_port(), work, results, args), nprocs=count)
        return dict(results)


@contextlib.contextmanager
def trains_alone() -> Iterator[None]:
    """This process trains alone; afterwards nothing of it is left for other tests."""
    import deepspeed

    before = dict(os.environ)
    join_group(use_gpu=False)
    try:
        yield
    finally:
        deepspeed.comm.destroy_process_group()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def _rank(number: int, count: int, port: int, work: Callable[..., None], results: Any, args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TRANSFORMERS_VERBOSITY": "error"}
    join_group(use_gpu=False)
    torch.set_num_threads(1)
    work(number, results, *args)
    # One that ends while the other is still in a collective takes it down: gloo aborts on a closed connection.
    dist.barrier()
    dist.destroy_process_group()
