"""Pair schema: what is a pair, and the reason why a line is none."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.schema import MAX_LINE_BYTES, TASKS, PairError, parse_line

ROW = {"filename": "a.wav", "instruction": "What?", "response": "That.", "dataset": "icbhi", "split": "train"}


def line(**changes: Any) -> bytes:
    return json.dumps({**ROW, **changes}).encode()


def test_defaults() -> None:
    pair = parse_line(line(unknown_key=1), 1)
    assert (pair.filenames, pair.task, pair.distribution, pair.patient) == (("a.wav",), "/", "ID", None)


def test_several_recordings_keep_their_order() -> None:
    assert parse_line(line(filename=["b.wav", "sub/a.wav"]), 1).filenames == ("b.wav", "sub/a.wav")


@pytest.mark.parametrize("task", TASKS)
def test_tasks(task: str) -> None:
    assert parse_line(line(task=task), 1).task == task
    assert parse_line(line(task=task.lower()), 1).task == task


@pytest.mark.parametrize(("given_task", "task"), [("detection", "Identification"), ("", "/"), (None, "/"), ("/", "/")])
def test_other_names_of_tasks(given_task: str | None, task: str) -> None:
    assert parse_line(line(task=given_task), 1).task == task


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "not JSON"),
        (b"[1, 2]", "line"),
        (b"null", "line"),
        (b'{"filename": "\xff.wav"}', "invalid UTF-8 at byte 14"),
        (line()[:-1] + b"," + b" " * MAX_LINE_BYTES, "longer than"),
        (json.dumps({key: ROW[key] for key in ROW if key != "response"}).encode(), "'response' is missing"),
        (json.dumps({key: ROW[key] for key in ROW if key != "filename"}).encode(), "'filename' is missing"),
        (line(instruction=5), "'instruction'"),
        (line(instruction=" "), "'instruction'"),
        (line(filename=[]), "'filename'"),
        (line(filename=[3]), "'filename'"),
        (line(filename={"a": 1}), "'filename'"),
        (line(filename=["x.wav"] * 17), "'filename'"),
        (line(filename="/etc/passwd"), "absolute"),
        (line(filename=["a.wav", "x/../../b.wav"]), "leaves the audio folder"),
        (line(filename="a\0.wav"), "cannot be printed"),
        (line(split="dev"), "'split'"),
        (line(task="Poetry"), "'task'"),
        (line(distribution="far"), "'distribution'"),
        (line(response=None), "'response'"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_reasons(raw: bytes, reason: str) -> None:
    with pytest.raises(PairError) as caught:
        parse_line(raw, 7)
    assert reason in caught.value.reason
    assert caught.value.line == 7
    assert "\n" not in caught.value.reason and len(caught.value.reason) < 600


@given(st.binary(max_size=200))
def test_any_bytes_give_a_pair_or_a_reason(raw: bytes) -> None:
    with contextlib.suppress(PairError):
        parse_line(raw, 1)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_any_value_of_a_field_gives_a_pair_or_a_reason(value: Any) -> None:
    for field in ROW:
        with contextlib.suppress(PairError):
            parse_line(line(**{field: value}), 1)
