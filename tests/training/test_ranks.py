"""Ranks: alone, and two processes together."""

import torch.distributed as dist
import torch.multiprocessing as mp

from stetholm.training.ranks import any_of_all, from_all, is_first, rank, world_size


def _answers() -> list[object]:
    return [rank(), world_size(), is_first(), any_of_all(rank() == 1), any_of_all(False), from_all(f"of {rank()}")]


def _worker(number: int, meet: str, results) -> None:
    dist.init_process_group("gloo", init_method=meet, rank=number, world_size=2)
    results[number] = _answers()
    dist.destroy_process_group()


def test_alone():
    assert _answers() == [0, 1, True, False, False, ["of 0"]]


def test_two_together(tmp_path):
    with mp.get_context("spawn").Manager() as manager:
        shared = manager.dict()
        mp.spawn(_worker, (f"file://{tmp_path}/meet", shared), nprocs=2)
        assert shared[0] == [0, 2, True, True, False, ["of 0", "of 1"]]
        assert shared[1] == [1, 2, False, True, False, ["of 0", "of 1"]]
