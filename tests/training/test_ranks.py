"""Ranks: alone, and two processes together."""

from stetholm.training.ranks import any_of_all, from_all, is_first, rank, world_size
from tests.training.together import two_ranks


def _answers() -> list[object]:
    return [rank(), world_size(), is_first(), any_of_all(rank() == 1), any_of_all(False), from_all(f"of {rank()}")]


def _worker(number: int, results) -> None:
    results[number] = _answers()


def test_alone():
    assert _answers() == [0, 1, True, False, False, ["of 0"]]


def test_two_together():
    results = two_ranks(_worker)
    assert results[0] == [0, 2, True, True, False, ["of 0", "of 1"]]
    assert results[1] == [1, 2, False, True, False, ["of 0", "of 1"]]
