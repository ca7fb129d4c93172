"""The plan and the ledger: every sample exactly once an epoch, whatever happens."""

from __future__ import annotations

from collections import deque
from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.ledger import Ledger
from stetholm.corpus.plan import Piece, Plan, drop_rows

SIZES = st.lists(st.integers(0, 9), max_size=12)
Id = tuple[int, int, int]


def ids(plan: Plan, rank: int) -> list[Id]:
    """(epoch, group, row) in the order in which a rank yields them."""
    return [(piece.epoch, piece.group, int(row)) for piece in plan.pieces(rank) for row in piece.rows]


def every(sizes: list[int], epochs: int) -> set[Id]:
    return {(epoch, group, row) for epoch in range(epochs) for group, size in enumerate(sizes) for row in range(size)}


@given(SIZES, st.integers(1, 5), st.integers(0, 3), st.integers(0, 9), st.booleans())
def test_ranks_share_each_epoch_without_overlap(
    sizes: list[int], world_size: int, epochs: int, seed: int, shuffle: bool
) -> None:
    plan = Plan(sizes, seed=seed, epochs=epochs, world_size=world_size, shuffle=shuffle)
    shares = [ids(plan, rank) for rank in range(world_size)]
    assert sorted(chain.from_iterable(shares)) == sorted(every(sizes, epochs))
    assert [len(share) for share in shares] == [plan.rows_of(rank) for rank in range(world_size)]
    assert max(map(len, shares)) - min(map(len, shares)) <= max(epochs, 1)
    assert all(share == sorted(share, key=lambda item: item[0]) for share in shares)  # epoch after epoch


@given(SIZES, st.integers(1, 4), st.integers(1, 3), st.integers(0, 9), st.data())
def test_exactly_once_through_kills_and_other_world_sizes(
    sizes: list[int], world_size: int, epochs: int, seed: int, data: st.DataObject
) -> None:
    ledger = Ledger()
    seen: list[Id] = []
    for _ in range(data.draw(st.integers(0, 3), "kills")):
        plan = _plan(sizes, seed, epochs, world_size, ledger)
        taken = data.draw(st.integers(0, sum(sizes) + 1), "rows that each rank does before the kill")
        ranks = [list(islice(ids(plan, rank), taken)) for rank in range(world_size)]
        ledger = _saved(ledger, ranks)
        seen += chain.from_iterable(ranks)
        world_size = data.draw(st.integers(1, 5), "workers after the restart")
    rest = _plan(sizes, seed, epochs, world_size, ledger)
    for rank in range(world_size):
        mine = ids(rest, rank)
        assert len(mine) == rest.rows_of(rank)
        seen += mine
    assert len(seen) == len(set(seen))
    assert set(seen) == every(sizes, epochs)


def _plan(sizes: list[int], seed: int, epochs: int, world_size: int, ledger: Ledger) -> Plan:
    consumed: dict[int, dict[int, np.ndarray]] = {}
    for epoch in ledger.epochs:
        for name in ledger.seen(epoch):
            group, row = map(int, name.split("/"))
            rows = consumed.setdefault(epoch, {}).get(group, np.zeros(0, np.int64))
            consumed[epoch][group] = np.append(rows, row)
    return Plan(sizes, seed=seed, epochs=epochs, world_size=world_size, consumed=consumed)


def _saved(ledger: Ledger, ranks: list[list[Id]]) -> Ledger:
    """Each rank adds its rows to its own copy; the checkpoint holds the merged one, through JSON."""
    merged = Ledger()
    for rows in ranks:
        own = Ledger.from_json(ledger.to_json())
        for epoch, group, row in rows:
            own.add(epoch, [f"{group}/{row}"])
        merged.merge(own)
    return Ledger.from_json(merged.to_json())


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sizes = [8] * 20
    order = ids(Plan(sizes, seed=1, epochs=2), 0)
    assert order == ids(Plan(sizes, seed=1, epochs=2), 0)
    first, second = order[:160], order[160:]
    assert [item[1:] for item in first] != [item[1:] for item in second]
    assert first != ids(Plan(sizes, seed=2), 0)
    # With two ranks the same order is cut in two.
    halves = Plan(sizes, seed=1, world_size=2)
    assert ids(halves, 0) + ids(halves, 1) == first


def test_what_is_left_keeps_its_order() -> None:
    sizes = [8] * 5
    whole = ids(Plan(sizes, seed=3), 0)
    gone = {0: {2: np.arange(8), 4: np.array([1, 5])}}
    left = [item for item in whole if item[2] not in gone[0].get(item[1], [])]
    assert ids(Plan(sizes, seed=3, consumed=gone), 0) == left


def test_no_shuffle_is_storage_order() -> None:
    assert ids(Plan([2, 1], seed=5, shuffle=False), 0) == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]


def test_each_row_group_is_read_once_a_rank_and_epoch() -> None:
    plan = Plan([7] * 9, seed=0, epochs=2, world_size=4)
    for rank in range(4):
        groups = [(piece.epoch, piece.group) for piece in plan.pieces(rank)]
        assert len(groups) == len(set(groups))


def test_bad_ranks() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Plan([1], seed=0, world_size=2).rows_of(2)
    with pytest.raises(ValueError, match="world_size 0"):
        Plan([1], seed=0, world_size=0)


@given(st.lists(st.integers(1, 9), max_size=8), st.data())
def test_dropping_rows_leaves_the_others_in_order(sizes: list[int], data: st.DataObject) -> None:
    pieces = deque(Piece(0, group, np.arange(size)) for group, size in enumerate(sizes))
    whole = [(piece.group, int(row)) for piece in pieces for row in piece.rows]
    count = data.draw(st.integers(0, len(whole)))
    drop_rows(pieces, count)
    assert [(piece.group, int(row)) for piece in pieces for row in piece.rows] == whole[count:]
    assert all(len(piece.rows) for piece in pieces)


@given(
    SIZES, st.integers(1, 4), st.integers(1, 3), st.integers(0, 9), st.lists(st.integers(0, 30), min_size=4, max_size=4)
)
def test_the_same_ranks_go_on_with_their_own_rows(
    sizes: list[int], world_size: int, epochs: int, seed: int, progress: list[int]
) -> None:
    """However unevenly they have come along."""
    plan = Plan(sizes, seed=seed, epochs=epochs, world_size=world_size)
    shares = [ids(plan, rank) for rank in range(world_size)]
    gone = {item for share, done in zip(shares, progress, strict=False) for item in share[:done]}
    again = Plan(sizes, seed=seed, epochs=epochs, world_size=world_size, consumed=positions(gone), dealt={})
    for rank, (share, done) in enumerate(zip(shares, progress, strict=False)):
        assert ids(again, rank) == share[done:]
        assert again.rows_of(rank) == len(share[done:])
        assert again.rows_by_epoch(rank) == [sum(item[0] == epoch for item in share[done:]) for epoch in range(epochs)]


def positions(items: set[Id]) -> dict[int, dict[int, np.ndarray]]:
    found: dict[int, dict[int, list[int]]] = {}
    for epoch, group, row in items:
        found.setdefault(epoch, {}).setdefault(group, []).append(row)
    return {epoch: {group: np.array(rows) for group, rows in groups.items()} for epoch, groups in found.items()}
