"""An answer that another engine ends is the answer that one engine would have given."""

import asyncio
from typing import Any

import pytest

from stetholm.serving import Completion, Delta, Request, RequestError, Sampling
from stetholm.serving.engine import collect
from stetholm.serving.progress import Progress
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.serving.vllm_start import vllm_installed
from tests.serving.test_engine import asked, streamed
from tests.serving.tiny import tiny_model

LENGTH = 24
KINDS = [
    "transformers",
    pytest.param("vllm", marks=pytest.mark.skipif(not vllm_installed(), reason="NO VLLM HERE: IT IS NOT TESTED")),
]


@pytest.fixture(scope="module", params=KINDS)
def either(request: pytest.FixtureRequest) -> Any:
    """Each engine, in fp32."""
    from stetholm.serving.load import vllm_engine
    from stetholm.settings import EngineSettings

    model, processor = tiny_model(head_dim=32)
    if request.param == "vllm":
        engine = vllm_engine(model, processor, "cpu", EngineSettings(kv_cache_bytes=2**26, max_num_seqs=16, threads=1))
    else:
        engine = TransformersEngine(model, processor)
    yield engine
    engine.close()


def stopping(engine: Any, **how: object) -> Request:
    """A request whose first answer a stop string ends in its middle, of two characters: one is held back for it."""
    [[whole, *_]] = engine.generate_many([asked(max_new_tokens=LENGTH, **how)])
    place = len(whole.text) // 2
    return asked(max_new_tokens=LENGTH, stop=("never there", whole.text[place : place + 2]), **how)


async def taken_up(engine: Any, request: Request, before: list[Delta]) -> list[Delta]:
    """What a reader gets who had ``before`` from an engine that is gone."""
    progress = Progress(request)
    passed = [delta for delta in before if progress.news(delta)]
    assert progress.known
    return passed + [delta for delta in await streamed(engine, progress.rest) if progress.news(delta)]


def all_cuts(engine: Any, request: Request) -> tuple[list[Completion], list[list[Delta]]]:
    """The answers to a request, and what its readers get if it changes engines after any of its deltas."""

    async def run() -> tuple[list[Delta], list[list[Delta]]]:
        whole = await streamed(engine, request)
        cuts = [taken_up(engine, request, whole[:cut]) for cut in range(len(whole) + 1)]
        return whole, await asyncio.gather(*cuts)

    whole, found = asyncio.run(run())
    return collect(whole, request.sampling.n), found


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.9, "top_p": 0.8, "seed": 4, "n": 2, "count": 2},
        {"count": 0, "n": 2, "temperature": 1.0, "seed": 5},
    ],
)
@pytest.mark.parametrize("stops", [False, True])
def test_an_answer_cut_anywhere_and_taken_up_is_the_same(either, how, stops):
    request = stopping(either, **how) if stops else asked(max_new_tokens=LENGTH, **how)
    answers, found = all_cuts(either, request)
    n = request.sampling.n
    assert len(found) > LENGTH // 4
    for deltas in found:
        assert collect(deltas, n) == answers
        assert sum(delta.finish_reason is not None for delta in deltas) == n
        for index, answer in enumerate(answers):
            assert sum(len(one.tokens) for one in deltas if one.index == index) == answer.completion_tokens
    assert not stops or (answers[0].finish_reason == "stop" and answers[0].completion_tokens < LENGTH)


def test_answers_that_have_ended_tell_their_ends_alone(either):
    request = asked(max_new_tokens=4, n=2, temperature=1.0, seed=1)
    whole = asyncio.run(streamed(either, request))
    progress = Progress(request)
    assert all(map(progress.news, whole)) and progress.over
    again = asyncio.run(streamed(either, progress.rest))
    ends = {one.index: one for one in whole if one.finish_reason}
    assert sorted((one.index, one.text, one.finish_reason, one.completion_tokens) for one in again) == [
        (index, "", ends[index].finish_reason, 4) for index in range(2)
    ]
    assert not any(map(progress.news, again))


def test_offline_answers_go_on_too(either):
    request = asked(max_new_tokens=12, n=2, temperature=1.0, seed=1)
    progress = Progress(request)
    for delta in asyncio.run(streamed(either, request)):
        progress.news(delta)
    [first, second] = progress.rest.begun
    begun = Request(request.instruction, request.features, sampling=request.sampling, begun=(first[:5], ()))
    assert len(first) == len(second) == 12
    assert either.generate_many([begun, request])[0] == either.generate_many([request])[0]


def test_what_samples_without_a_seed_gets_one_and_keeps_it():
    progress = Progress(asked(temperature=1.0))
    seed = progress.rest.sampling.seed
    assert seed is not None and progress.rest.sampling.seed == seed
    assert Progress(asked(temperature=1.0)).rest.sampling.seed != seed
    assert Progress(asked()).rest.sampling.seed is None


def test_deltas_without_their_tokens_are_not_to_be_taken_up():
    progress = Progress(asked())
    assert progress.known and not progress.begun
    progress.news(Delta(0, "word", None, 8, 1))
    assert progress.begun and not progress.known


@pytest.mark.parametrize(("begun", "how"), [(((1,), (2,)), Sampling()), (((1,),), Sampling(num_beams=2))])
def test_a_begun_that_does_not_fit_is_refused(begun, how):
    with pytest.raises(RequestError, match="begun"):
        Request("?", sampling=how, begun=begun)
