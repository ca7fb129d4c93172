"""What a reader gets of an answer in the making: everything, in order, in as many pieces as its pace allows."""

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.serving.engine import Delta, EngineBusy, Request, Sampling, collect
from stetholm.serving.waiting import PACE_MOST_S, PACE_S, Online, Waiting

LONG_S = 60.0
"""A gap that no test waits for."""


def answer(words: Sequence[str], index: int = 0) -> list[Delta]:
    return [
        Delta(index, word, "stop" if number == len(words) else None, 5, number) for number, word in enumerate(words, 1)
    ]


async def read(deltas: Sequence[Delta], gap: float, n: int = 1, steps: int = 1) -> list[Delta]:
    """The pieces that a reader gets of ``deltas``, which come ``steps`` turns of the event loop apart."""
    waiting = Waiting(Request("?", sampling=Sampling(n=n)), gap=lambda: gap)

    async def write() -> None:
        for delta in deltas:
            waiting.send(delta)
            for _ in range(steps):
                await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    pieces = [piece async for piece in waiting.deltas()]
    await writing
    return pieces


async def test_without_a_gap_nothing_waits_and_nothing_is_lost():
    deltas = answer(["a", "b", "c"])
    assert await read(deltas, gap=0.0, steps=10) == deltas


async def test_the_first_piece_comes_at_once_and_the_others_together():
    """The end of an answer does not wait for the gap either, or this test would take a minute."""
    pieces = await read(answer(["a", "b", "c", "d"]), gap=LONG_S, steps=10)
    assert [piece.text for piece in pieces] == ["a", "bcd"]
    assert (pieces[1].finish_reason, pieces[1].completion_tokens) == ("stop", 4)


async def test_after_the_gap_what_has_come_is_passed_on():
    waiting = Waiting(Request("?"), gap=lambda: 0.01)
    pieces = waiting.deltas()
    for delta in answer(["a", "b", "c", "d"])[:3]:
        waiting.send(delta)
    assert (await anext(pieces)).text == "abc"
    waiting.send(Delta(0, "x", None, 5, 4))
    assert (await anext(pieces)).text == "x"
    await pieces.aclose()
    assert waiting.cancelled


async def test_an_error_is_raised_whatever_waits():
    waiting = Waiting(Request("?"), gap=lambda: LONG_S)
    waiting.send(answer(["a", "b"])[0])
    pieces = waiting.deltas()
    await anext(pieces)
    waiting.send(EngineBusy("gone"))
    with pytest.raises(EngineBusy):
        await anext(pieces)


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.sampled_from(["", "a", "bc"]), min_size=1, max_size=5), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.001, LONG_S]),
    st.integers(0, 3),
    st.randoms(),
)
def test_pieces_put_together_are_the_answers(words, gap, steps, random):
    left = [answer(one, index) for index, one in enumerate(words)]
    mixed = []
    while any(left):
        mixed.append(random.choice([one for one in left if one]).pop(0))
    pieces = asyncio.run(read(mixed, gap, n=len(words), steps=steps))
    assert collect(pieces, len(words)) == collect(mixed, len(words))
    assert len(pieces) <= len(mixed)


class Crowd(Online):
    """An engine that answers when the test says so."""

    def __init__(self) -> None:
        self._open, self._change, self._closed, self.max_waiting = [], threading.Condition(), False, 10_000

    def _submit(self, waiting: Waiting) -> None:
        self._open.append(waiting)


async def test_the_gap_grows_with_those_who_read_and_has_a_limit():
    crowd = Crowd()
    crowd._open = [Waiting(Request("?")) for _ in range(1000)]
    assert crowd._gap() == 0.0  # all of them wait for a first word
    for waiting in crowd._open[:3]:
        waiting.send(answer(["a", "b"])[0])
    assert crowd._gap() == 2 * PACE_S
    for waiting in crowd._open:
        waiting.send(answer(["a", "b"])[0])
    assert crowd._gap() == PACE_MOST_S == 0.2
    crowd._open[0].cancel()
    assert crowd.waiting == 999
