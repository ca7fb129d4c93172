"""The clients and both endpoints of the serve benchmarks: they ask, measure and make what they say."""

import asyncio
from collections.abc import Iterator

import pytest
import torch

from benchmarks.serve_disconnect import measure
from benchmarks.serve_empty import EmptyReplica, on_serve, plain_app
from benchmarks.serve_load import MAX_TOKENS, Load, Question, Seen, put_load, questions
from benchmarks.serve_naive import create_app
from benchmarks.serve_overhead import LONG, SHORT
from stetholm.model.checkpoint import load_checkpoint
from stetholm.serving.engine import Delta, Request, Sampling
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.serving.types import ChatRequest
from tests.serve.running import listening
from tests.serving.tiny import save_tiny


@pytest.fixture(scope="module")
def empty() -> Iterator[str]:
    with listening(plain_app()) as url:
        yield url


def test_questions_are_mixed_and_always_the_same():
    asked = questions(10)
    assert sorted(one.max_tokens for one in asked) == sorted(MAX_TOKENS * 2)
    assert {len(one.recordings) for one in asked} == {0, 1, 2}
    assert len({data for one in asked for data in one.recordings}) == sum(len(one.recordings) for one in asked)
    assert asked == questions(10) != questions(10, seed=1)


def test_a_question_is_the_same_over_http_and_to_an_engine():
    question = questions(4)[3]
    body, request = ChatRequest.model_validate_json(question.body()), question.request()
    assert body.instruction == request.instruction
    assert len(body.recordings) == len(request.features) == 2
    assert body.budget == request.sampling.max_new_tokens == question.max_tokens


@pytest.mark.parametrize("stream", [True, False])
def test_every_question_is_asked_once_and_measured(empty, stream):
    asked = questions(7)
    load = put_load(empty, asked, clients=3, stream=stream)
    assert sorted(one.tokens for one in load.seen) == sorted(one.max_tokens for one in asked)
    assert all(0 < one.first <= one.seconds <= load.seconds for one in load.seen)


def test_a_refusal_fails_the_measurement(empty):
    with pytest.raises(RuntimeError, match="HTTP 422"):
        put_load(empty, [Question("", (), 4)])


def test_rates_and_percentiles():
    load = Load(4.0, tuple(Seen(first, first + 1, 10) for first in (1.0, 2.0, 3.0)))
    assert (load.answers_per_second, load.tokens_per_second, load.first(50)) == (0.75, 7.5, 2.0)


def test_a_slot_that_nobody_holds_is_not_measured(empty):
    with pytest.raises(RuntimeError, match="the slot was not taken"):
        measure(empty, 1)


def test_the_empty_replica_answers_as_the_application_asks():
    async def ask() -> list[Delta]:
        stream = EmptyReplica().stream(Request("?", sampling=Sampling(max_new_tokens=3)))
        return [delta async for delta in stream if isinstance(delta, Delta)]

    deltas = asyncio.run(ask())
    assert [delta.text for delta in deltas] == ["word "] * 3
    assert [delta.finish_reason for delta in deltas] == [None, None, "length"]


@pytest.mark.long
def test_the_naive_endpoint_gives_the_answers_of_the_engine(tmp_path):
    folder = save_tiny(tmp_path)
    engine = TransformersEngine(*load_checkpoint(folder, merge=True))
    asked = questions(5)
    with listening(create_app(folder, torch.float32)) as url:
        load = put_load(url, asked, clients=2)
    made = [engine.generate_many([one.request()])[0][0].completion_tokens for one in asked]
    engine.close()
    assert sorted(one.tokens for one in load.seen) == sorted(made)


@pytest.mark.long
def test_the_application_runs_on_serve_with_an_empty_model(ray_cluster):
    with on_serve() as (url, handle):
        load = put_load(url, [SHORT, LONG] * 5, clients=2)
        handle.complete.remote(Request("?", sampling=Sampling(max_new_tokens=2))).result()
        made = handle.stats.remote().result()["deltas"]
    assert sum(one.tokens for one in load.seen) == 5 * (SHORT.max_tokens + LONG.max_tokens)
    assert made == sum(one.tokens for one in load.seen) + 2
