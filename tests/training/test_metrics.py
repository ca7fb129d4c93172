"""The numbers of training: counts of a batch, an interval over ranks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stetholm.training.metrics import Counted, Counts, Interval, count, peak_memory, summary


def batch(lengths: list[int], labelled: int = 1, recordings: int = 1) -> dict[str, torch.Tensor]:
    width = max(lengths)
    places = torch.arange(width)
    mask = (places[None] < torch.tensor(lengths)[:, None]).long()
    labels = torch.where(places[None] >= torch.tensor(lengths)[:, None] - labelled, mask * 7 - 100 * (1 - mask), -100)
    return {"attention_mask": mask, "labels": labels, "input_features": torch.zeros(recordings, 64, 218)}


def interval(**changes) -> Interval:
    whole = Interval(
        counts=Counts(samples=4, recordings=4, tokens=100, places=125, scored=20, squares=2500),
        steps=2,
        loss=1.0,
        seconds=2.0,
        wait=0.5,
        flops=4e9,
        peak_flops=10e9,
        memory=2**30,
        gpu_memory=0,
        terms={"dpo": 0.5},
    )
    return dataclasses.replace(whole, **changes)


def test_a_batch_is_counted_without_its_padding():
    counts = count(batch([3, 5], labelled=2, recordings=4), samples=2)
    assert counts == Counts(samples=2, recordings=4, tokens=8, places=10, scored=4, squares=34)


def test_a_rank_without_samples_makes_padding_alone():
    assert count(batch([3]), samples=0) == Counts(places=3)


def test_counts_come_with_the_batch():
    made = Counted(lambda rows: batch([len(row) for row in rows]))([{"a": 1}, {"a": 1, "b": 2}])
    assert made["counts"].samples == 2 and made["counts"].tokens == 3
    assert made["attention_mask"].shape == (2, 2)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_counts_add_up(first, second):
    one, two = count(batch(first), len(first)), count(batch(second), len(second))
    both = one + two
    assert both.tokens == sum(first) + sum(second) <= both.places
    assert both.squares == sum(length**2 for length in first + second)
    assert both == two + one


def test_ranks_add_their_speed_and_share_their_loss():
    numbers = summary([interval(), interval(loss=3.0, wait=1.0, memory=3 * 2**30, terms={"dpo": 1.5})])
    assert numbers["loss"] == 2.0 and numbers["dpo"] == 1.0
    assert numbers["samples_per_s"] == 4.0 and numbers["tokens_per_s"] == 100.0
    assert numbers["padding"] == pytest.approx(0.2)
    assert numbers["data_wait"] == 0.5  # of the rank that waited longest
    assert numbers["memory_gb"] == 3.0
    assert numbers["mfu"] == pytest.approx(8 / 40)
    assert "gpu_memory_gb" not in numbers


def test_without_a_known_peak_there_is_no_mfu():
    assert "mfu" not in summary([interval(peak_flops=0.0)])


def test_a_term_that_only_some_ranks_noted_is_their_mean():
    assert summary([interval(), interval(terms={})])["dpo"] == 0.5


def test_steps_of_padding_alone_divide_by_nothing():
    numbers = summary([interval(counts=Counts(), seconds=0.0, wait=0.0)])
    assert numbers["padding"] == 0.0 and numbers["tokens_per_s"] == 0.0


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory()
    held = torch.ones(64 * 2**20)  # 256 MiB
    assert peak_memory() >= before + 0 and peak_memory() >= held.numel() * 4
