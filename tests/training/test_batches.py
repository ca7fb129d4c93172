"""Rows to batches: nothing lost, nothing twice, ranks in step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stetholm.training.batches import BatchPlan, StepBatches


def rows(lengths):
    return [{"sample_id": str(i), "epoch": 0, "input_ids": [0] * length} for i, length in enumerate(lengths)]


plans = st.one_of(
    st.builds(BatchPlan, batch_size=st.integers(1, 7), window=st.integers(1, 4)),
    st.builds(BatchPlan, batch_size=st.integers(1, 7), tokens_per_batch=st.integers(64, 256)),
)


@given(st.lists(st.integers(1, 64), max_size=60), plans)
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


@given(st.lists(st.integers(1, 64), max_size=60), st.integers(1, 7))
def test_steps_are_exact_for_a_batch_size(lengths, size):
    plan = BatchPlan(size)
    assert plan.steps(len(lengths), 30.0) == len(list(plan.batches(rows(lengths))))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 3))
def test_all_ranks_end_at_the_same_step(counts, size):
    """Lock-step simulation: a flag is true while any rank has a batch left at that point."""
    plan = BatchPlan(size)
    longest = max(plan.steps(count, 1.0) for count in counts)

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
