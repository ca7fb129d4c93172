"""Rows to batches: nothing lost, nothing twice, ranks in step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.training.batches import BatchPlan, StepBatches


def rows(lengths, epoch=0):
    return [{"sample_id": str(i), "epoch": epoch, "input_ids": range(length)} for i, length in enumerate(lengths)]


def names(batches):
    return [[row["sample_id"] for row in batch] for batch in batches]


plans = st.one_of(
    st.builds(BatchPlan, batch_size=st.integers(1, 7), window=st.integers(1, 4)),
    st.builds(BatchPlan, batch_size=st.integers(1, 7), tokens_per_batch=st.integers(64, 256), window=st.integers(1, 4)),
)
lengths = st.lists(st.integers(1, 64), max_size=60)


@given(lengths, plans)
def test_each_row_stands_in_one_batch(lengths, plan):
    batches = list(plan.batches(rows(lengths)))
    seen = [row["sample_id"] for batch in batches for row in batch]
    assert sorted(seen) == sorted(str(i) for i in range(len(lengths)))
    assert all(batches)
    for batch in batches:
        if plan.tokens_per_batch:
            assert len(batch) * max(len(row["input_ids"]) for row in batch) <= plan.tokens_per_batch
        else:
            assert len(batch) <= plan.batch_size


@given(lengths, plans, st.integers(0, 30))
def test_whoever_goes_on_makes_the_batches_that_were_to_come(lengths, plan, done):
    """A run that is resumed reads the rows that are left, in their order."""
    batches = names(plan.batches(rows(lengths)))
    gone = {name for batch in batches[:done] for name in batch}
    left = [row for row in rows(lengths) if row["sample_id"] not in gone]
    assert names(plan.batches(left)) == batches[done:]


@given(lengths, lengths, plans)
def test_an_epoch_is_used_up_before_the_next(first, second, plan):
    batches = list(plan.batches([*rows(first), *rows(second, epoch=1)]))
    assert all(len({row["epoch"] for row in batch}) == 1 for batch in batches)
    epochs = [batch[0]["epoch"] for batch in batches]
    assert epochs == sorted(epochs)


@given(lengths, lengths, st.integers(1, 7))
def test_steps_are_exact_for_a_batch_size(first, second, size):
    plan = BatchPlan(size)
    stream = [*rows(first), *rows(second, epoch=1)]
    assert plan.steps([len(first), len(second)]) == len(list(plan.batches(stream)))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=40))
def test_a_pair_counts_as_three_rows_of_its_longer_answer(pairs):
    plan = BatchPlan(2, tokens_per_batch=240)
    both = [
        row | {"rejected_input_ids": range(rejected)}
        for row, (_, rejected) in zip(rows([chosen for chosen, _ in pairs]), pairs, strict=True)
    ]
    for batch in plan.batches(both):
        longest = max(max(len(row["input_ids"]), len(row["rejected_input_ids"])) for row in batch)
        assert 3 * len(batch) * longest <= 240


MIXED = np.random.default_rng(0).lognormal(4.2, 0.5, 3000).astype(int).clip(24, 256)
"""Lengths such as a corpus of all tasks has: questions of a few words beside reports."""


@pytest.mark.parametrize(
    "plan",
    [
        BatchPlan(4),
        BatchPlan(8),
        BatchPlan(16),
        BatchPlan(1, tokens_per_batch=512),
        BatchPlan(1, tokens_per_batch=8192),
    ],
)
def test_at_most_a_tenth_is_padding(plan):
    shares = [1 - sum(sizes) / (len(sizes) * max(sizes)) for sizes in lengths_of(plan)]
    places = [len(sizes) * max(sizes) for sizes in lengths_of(plan)]
    assert np.average(shares, weights=places) <= 0.10


@pytest.mark.parametrize("tokens", [1024, 8192])
def test_batches_of_tokens_are_nearly_full(tokens):
    filled = [sum(sizes) / tokens for sizes in lengths_of(BatchPlan(1, tokens_per_batch=tokens))]
    assert np.mean(filled) >= 0.85


def test_long_and_short_batches_come_mixed():
    longest = np.array([max(sizes) for sizes in lengths_of(BatchPlan(8))])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.15


def lengths_of(plan):
    return [[len(row["input_ids"]) for row in batch] for batch in plan.batches(rows(MIXED))]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 3))
def test_all_ranks_end_at_the_same_step(counts, size):
    """Lock-step simulation: a flag is true while any rank has a batch left at that point."""
    plan = BatchPlan(size)
    longest = max(plan.steps([count]) for count in counts)

    for count in counts:
        asked = [0]

        def any_left(mine, asked=asked):
            asked[0] += 1
            return asked[0] <= longest

        batches = StepBatches(lambda count=count: rows([1] * count), plan, lambda group: {"size": len(group)}, any_left)
        given_batches = list(batches)
        assert len(given_batches) == longest
        assert sum(batch["size"] for batch in given_batches) == count
        assert batches.at_end


def test_a_window_of_one_batch_takes_rows_as_they_come():
    given_rows = list(rows([30, 9, 4, 77, 5, 50, 6]))
    batches = list(BatchPlan(2, window=1).batches(given_rows))
    assert [sorted(row["sample_id"] for row in batch) for batch in batches] == [
        sorted(row["sample_id"] for row in given_rows[start : start + 2]) for start in range(0, 7, 2)
    ]
