"""The vLLM engine gives the reference's answers, token for token, online and offline; and lets go of what it holds."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import psutil
import pytest
import torch

from stetholm.serving import EngineBusy, RequestError
from stetholm.serving.engine import collect
from stetholm.serving.load import vllm_engine
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.serving.vllm_start import vllm_installed
from stetholm.settings import EngineSettings
from tests.serving.test_engine import MIXED, asked, streamed
from tests.serving.tiny import CONTEXT, tiny_model

pytestmark = pytest.mark.skipif(
    not vllm_installed(), reason="NO VLLM HERE: THE ENGINE vllm IS NOT TESTED (python scripts/setup_env.py --vllm)"
)
ASKED = [request for request in MIXED if request.sampling.num_beams == 1]
SMALL = EngineSettings(kv_cache_bytes=2**26, max_num_seqs=8, threads=1)


def engine_processes() -> list[psutil.Process]:
    """vLLM's processes below this one."""
    children = psutil.Process().children(recursive=True)
    return [one for one in children if one.is_running() and "EngineCore" in " ".join(one.cmdline())]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    """The reference on the same weights."""
    return TransformersEngine(*tiny_model(head_dim=32), max_batch=8)


@pytest.fixture(scope="module")
def vllm() -> Iterator[Any]:
    """One engine for all tests here; after them, none of its processes is left."""
    model, processor = tiny_model(head_dim=32)
    environment, randomness = dict(os.environ), torch.get_rng_state()
    engine = vllm_engine(model, processor, "cpu", SMALL)
    assert engine_processes()
    assert os.environ == environment and torch.equal(torch.get_rng_state(), randomness)
    yield engine
    engine.close()
    assert not engine_processes()
    with pytest.raises(EngineBusy, match="closed"):
        asyncio.run(streamed(engine, asked()))


def test_answers_are_the_references_greedy_and_seeded(engine, vllm):
    assert vllm.generate_many(ASKED) == engine.generate_many(ASKED)


def test_many_seeds_give_the_references_draws(engine, vllm):
    draws = [
        asked(f"Seeded {seed}", temperature=temperature, top_p=top_p, seed=seed, n=2)
        for seed, (temperature, top_p) in enumerate([(0.7, 1.0), (1.3, 1.0), (1.0, 0.9), (0.5, 0.3), (1e-4, 1.0)] * 2)
    ]
    assert vllm.generate_many(draws) == engine.generate_many(draws)


def test_streams_together_give_what_is_generated_offline(vllm):
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(streamed(vllm, request) for request in ASKED))

    answers = [
        collect(deltas, request.sampling.n) for deltas, request in zip(asyncio.run(all_at_once()), ASKED, strict=True)
    ]
    assert answers == vllm.generate_many(ASKED)


def test_without_a_seed_answers_differ(vllm):
    one, other = vllm.generate_many([asked(temperature=1.0, max_new_tokens=16)] * 2)
    assert one != other


def test_stop_strings_end_the_answer_before_them(engine, vllm):
    [[whole]] = vllm.generate_many([asked(max_new_tokens=40)])
    request = asked(max_new_tokens=40, stop=("never there", whole.text[10:13]))
    [[cut]] = vllm.generate_many([request])
    assert [[cut]] == engine.generate_many([request]) and cut.finish_reason == "stop" and cut.completion_tokens < 40
    assert collect(asyncio.run(streamed(vllm, request)), 1) == [cut]


def test_the_encoder_runs_once_for_n_answers_and_for_equal_recordings(vllm):
    seen: list[int] = []
    tower = vllm._encoder._model.model.audio_tower
    hook = tower.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    vllm.generate_many([asked(n=12, temperature=1.0, count=2)])
    hook.remove()
    assert seen == [2]


def test_beam_search_is_refused_with_the_remedy(vllm):
    with pytest.raises(RequestError, match=r"request 1: beam search .* transformers"):
        vllm.generate_many([asked(), asked(num_beams=3)])
    with pytest.raises(RequestError, match="transformers"):
        asyncio.run(streamed(vllm, asked(num_beams=3)))


def test_a_prompt_too_long_is_named_and_fails_alone(vllm):
    long = asked("x" * CONTEXT)
    with pytest.raises(RequestError, match=f"request 1: .*{CONTEXT}"):
        vllm.generate_many([asked(), long])

    async def both() -> list[object]:
        return await asyncio.gather(streamed(vllm, long), streamed(vllm, asked()), return_exceptions=True)

    failed, fine = asyncio.run(both())
    assert isinstance(failed, RequestError) and isinstance(fine, list)


def test_closing_a_stream_stops_its_generation_and_frees_its_place(vllm):
    async def leave_early() -> None:
        async with aclosing(vllm.stream(asked(max_new_tokens=3000))) as deltas:
            await anext(deltas)
        assert vllm.waiting == 0
        async with asyncio.timeout(60):
            while vllm._llm.get_num_unfinished_requests():  # soon; 3,000 tokens would take longer than a test may
                await asyncio.sleep(0.01)

    asyncio.run(leave_early())
    assert not vllm._open


def test_a_full_queue_refuses_and_recovers(vllm, monkeypatch):
    monkeypatch.setattr(vllm, "max_waiting", 2)

    async def crowd() -> tuple[list[object], list[Any]]:
        results = await asyncio.gather(*(streamed(vllm, asked()) for _ in range(4)), return_exceptions=True)
        return results, await streamed(vllm, asked())

    results, after = asyncio.run(crowd())
    assert [isinstance(result, EngineBusy) for result in results] == [False, False, True, True]
    assert after[-1].finish_reason == "length"


def test_answers_do_not_depend_on_what_runs_beside_them(vllm):
    assert vllm.generate_many(ASKED) == [vllm.generate_many([request])[0] for request in ASKED]


def test_an_answer_that_lost_its_place_goes_on_with_its_own_draws():
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from stetholm.serving import Sampling
    from stetholm.serving.decoding import perturb, row_generator
    from stetholm.serving.vllm_sampler import KEY, SeededSampler

    cpu, logits = torch.device("cpu"), torch.randn(2, 11, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=0.9, top_p=0.8, seed=5)
    generator = row_generator(sampling, 1, cpu)
    assert generator is not None
    third = [perturb(logits[1], sampling, generator) for _ in range(3)][2]
    chosen = {KEY: {"temperature": 0.9, "top_p": 0.8, "seed": 5, "index": 1, "begun": 0}}
    sampler = SeededSampler(None, cpu, False)
    sampler.update_state(BatchUpdate(2, [], [(1, SamplingParams(extra_args=chosen), None, [7, 8])], []))
    found = sampler.apply(logits.clone())
    assert torch.equal(found[0], logits[0]) and torch.equal(found[1], third.float())
