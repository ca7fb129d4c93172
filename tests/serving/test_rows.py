"""Tokens to text: what is streamed is what is answered, whatever the bytes and stop strings."""

from dataclasses import replace
from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from stetholm.serving import Delta, Request, Sampling
from stetholm.serving.decoding import keep_top_p
from stetholm.serving.prompts import Prompt
from stetholm.serving.rows import Row

EOS = 256


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def run(tokens: list[int], budget: int, stops: tuple[str, ...]) -> tuple[Row, list[Delta]]:
    deltas: list[Delta] = []
    prompt = Prompt(Request("q", sampling=Sampling(max_new_tokens=budget, stop=stops)), [1, 2, 3], budget)
    row = Row(prompt, 0, decode, frozenset({EOS}), deltas.append)
    for token in tokens:
        row.push(token)
    return row, deltas


def taken_up(row: Row, begun: list[int]) -> tuple[Row, list[Delta]]:
    """A row that goes on where another one was after ``begun``, and what it says by itself."""
    deltas: list[Delta] = []
    prompt = Prompt(replace(row.prompt.request, begun=(tuple(begun),)), [1, 2, 3], row.prompt.max_new_tokens)
    return Row(prompt, 0, decode, frozenset({EOS}), deltas.append), deltas


TOKENS = st.one_of(
    st.lists(st.integers(0, EOS), min_size=1, max_size=40),
    st.text(alphabet="ab€é🙂", min_size=1, max_size=20).map(lambda text: list(text.encode())),
)


@given(tokens=TOKENS, stops=st.lists(st.text(alphabet="ab€", min_size=1, max_size=3), max_size=2), cut=st.booleans())
def test_deltas_add_up_to_the_text(tokens, stops, cut):
    budget = max(1, len(tokens) - 3 * cut)
    row, deltas = run([*tokens, EOS], budget, tuple(stops))
    assert row.done
    assert "".join(delta.text for delta in deltas) == row.completion().text
    assert [delta.finish_reason is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert not any(stop in row.text for stop in stops)
    assert row.completion().completion_tokens <= budget


@given(tokens=TOKENS, stops=st.lists(st.text(alphabet="ab€", min_size=1, max_size=3), max_size=2), cut=st.data())
def test_a_row_taken_up_after_any_delta_says_the_rest(tokens, stops, cut):
    row, deltas = run([*tokens, EOS], max(1, len(tokens) - 2), tuple(stops))
    before = deltas[: cut.draw(st.integers(0, len(deltas)))]
    begun = [token for delta in before for token in delta.tokens]
    other, rest = taken_up(row, begun)
    for token in [*tokens, EOS][len(begun) :]:
        other.push(token)
    assert other.completion() == row.completion()
    ended = before and before[-1].finish_reason
    assert [*before, *rest] == ([*deltas, replace(deltas[-1], text="", tokens=())] if ended else deltas)


@given(text=st.text(alphabet="ab€é🙂", min_size=1, max_size=20))
def test_without_stops_the_text_is_decoded_whole(text):
    row, deltas = run([*text.encode(), EOS], 1000, ())
    assert row.completion().text == text
    assert all("�" not in delta.text for delta in deltas)


def test_nothing_is_taken_after_the_end():
    row, deltas = run([97, EOS, 98, 98], 10, ())
    assert row.completion().text == "a" and row.completion().completion_tokens == 2
    assert SimpleNamespace(**vars(deltas[-1])).finish_reason == "stop"


@given(logits=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12), top_p=st.floats(0, 1, exclude_max=True))
def test_nucleus_is_the_smallest_set_that_reaches_top_p(logits, top_p):
    scores = torch.tensor(logits, dtype=torch.float64)
    kept = keep_top_p(scores, top_p).isfinite()
    probabilities = scores.softmax(-1)
    assert kept.any()
    assert probabilities[kept].sum() >= top_p - 1e-9 or kept.all()
    # Without its least likely member it would not reach top_p.
    assert kept.sum() == 1 or probabilities[kept].sum() - probabilities[kept].min() < top_p + 1e-9
    assert probabilities[kept].min() >= probabilities[~kept].max() if (~kept).any() else True
