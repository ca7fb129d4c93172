"""The ledger: sets of ids by epoch, and their JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.ledger import Ledger

CONTENT = st.dictionaries(st.integers(0, 4), st.sets(st.text(max_size=3), max_size=5), max_size=5)


def ledger_of(content: dict[int, set[str]]) -> Ledger:
    ledger = Ledger()
    for epoch, ids in content.items():
        ledger.add(epoch, ids)
    return ledger


@given(CONTENT)
def test_json_brings_back_the_same(content: dict[int, set[str]]) -> None:
    ledger = ledger_of(content)
    assert Ledger.from_json(ledger.to_json()) == ledger
    assert len(ledger) == sum(map(len, content.values()))


@given(CONTENT, CONTENT)
def test_merge_is_the_union(one: dict[int, set[str]], two: dict[int, set[str]]) -> None:
    ledger = ledger_of(one)
    ledger.merge(ledger_of(two))
    for epoch in range(5):
        assert ledger.seen(epoch) == one.get(epoch, set()) | two.get(epoch, set())


def test_adding_again_changes_nothing() -> None:
    ledger = ledger_of({0: {"a"}})
    ledger.add(0, ["a", "a"])
    assert ledger == ledger_of({0: {"a"}})


def test_what_is_seen_cannot_be_changed_from_outside() -> None:
    ledger = ledger_of({0: {"a"}})
    assert isinstance(ledger.seen(0), frozenset)
    assert ledger.seen(7) == frozenset()


def test_finished_epochs_share_their_ids_in_the_file() -> None:
    names = {f"sample-{index}" for index in range(50)}
    assert len(json.loads(ledger_of({0: names, 1: names, 2: {"a"}}).to_json())["ids"]) == 2


@pytest.mark.parametrize("text", ["[]", "{}", '{"version": 99}'])
def test_something_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a ledger"):
        Ledger.from_json(text)
