"""Answers that were paid for: kept before anything else, found again by any process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.synthesis import store as stores
from stetholm.corpus.synthesis.store import Answer, AnswerStore, key_of
from stetholm.errors import UserError
from stetholm.storage import Storage


def test_what_is_kept_is_there_for_the_next_process(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stores, "SEGMENT_BYTES", 300)
    uri = storage.join("test-synthesis-store")
    first = AnswerStore(storage, uri)
    answers = [Answer(f"{number:032d}", f"line\n{number}\u2028é", number, 2) for number in range(12)]
    for number in range(0, 12, 2):
        first.keep(answers[number : number + 2])
    first.keep([])
    assert len(storage.list(uri)) > 2, "a segment ends when it is full"
    second = AnswerStore(storage, uri)
    second.keep([Answer("x", "", refused="a filter")])
    third = AnswerStore(storage, uri)
    assert [third[answer.key] for answer in answers] == answers
    assert third["x"].refused == "a filter" and "y" not in third and len(third) == 13
    assert third.tokens == (sum(range(12)), 24)


def test_a_damaged_segment_is_named(storage: Storage):
    uri = storage.join("test-synthesis-damaged")
    storage.write_text(f"{uri}/a.jsonl", '{"key": "1", "text": "x"}\n{"ke')
    with pytest.raises(UserError, match=r"a\.jsonl is damaged .*: remove it"):
        AnswerStore(storage, uri)


def test_in_memory_where_answers_are_free():
    store = AnswerStore()
    store.keep([Answer("a", "x")])
    assert "a" in store and store.tokens == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=3), st.integers(0, 2)), unique=True, max_size=6))
def test_other_questions_have_other_keys(questions):
    keys = [key_of(writer, [{"role": "user", "content": text}], turn=turn) for writer, text, turn in questions]
    assert len(set(keys)) == len(questions) and all(len(key) == 32 for key in keys)
