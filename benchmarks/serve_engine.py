"""``serve/engine``: our endpoint under 32 clients against its own engine, run offline on the same requests.

What is lost between them is HTTP, JSON, decoding the recordings, two processes of Ray Serve in between, and the
clients: all of that shares the machine's cores with the model. Offline the recordings are decoded ahead. The engine
answers before the endpoint is up and after it is down again; the medians count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from benchmarks.report import Result
from benchmarks.serve_fastapi import WARM_UP, median
from benchmarks.serve_load import CLIENTS, Load, Question, put_load, questions
from benchmarks.serve_sides import checkpoint, dtype_name, endpoint, settings_of
from stetholm.serving.engine import Engine, Request
from stetholm.serving.load import load_engine

ASKED = 96
ROUNDS = 3
"""Of the endpoint, each way; the engine has twice as many."""
ENGINE_IS = "the same engine offline: generate_many on the same requests, their recordings decoded ahead"


def engine() -> Iterator[Result]:
    """Answers a second: streamed, as the goal is meant, and whole."""
    asked = questions(ASKED)
    requests = [question.request() for question in asked]
    with checkpoint() as made:
        offline = load_engine(made.uri, made.storage, "vllm", settings=settings_of(made, 1).engine)
        offline.generate_many(requests[:WARM_UP])
        alone = [answer(offline, requests) for _ in range(ROUNDS)]
        with endpoint(made) as url:
            put_load(url, questions(WARM_UP, seed=1))
            rounds = [[put_load(url, asked, stream=stream) for stream in (True, False)] for _ in range(ROUNDS)]
        alone += [answer(offline, requests) for _ in range(ROUNDS)]
        offline.close()
    for way, column in zip(("streamed", "whole"), zip(*rounds, strict=True), strict=True):
        yield result(way, list(column), alone, asked)


def result(way: str, rounds: list[Load], alone: list[float], asked: list[Question]) -> Result:
    """The endpoint's answers ``way``, against the engine's."""
    ours = median(rounds)
    config = {
        "answers": way,
        "clients": CLIENTS,
        "requests": len(asked),
        "max_tokens": sorted({question.max_tokens for question in asked}),
        "model": "smollm2-135m",
        "dtype": dtype_name(),
        "first_text_p50_s": ours.first(50) if way == "streamed" else None,
        "first_text_p99_s": ours.first(99) if way == "streamed" else None,
        "tokens_per_second": ours.tokens_per_second,
        "rounds": [f"{one.answers_per_second:.2f}" for one in rounds],
        "baseline_rounds": [f"{one:.2f}" for one in alone],
    }
    return Result(
        "serve/engine", ours.answers_per_second, statistics.median(alone), "answers/s", f"{ENGINE_IS}; {way}", config
    )


def answer(offline: Engine, requests: list[Request]) -> float:
    """Answers a second of the engine alone.

    Raises:
        RuntimeError: an answer has not the length that was asked for.
    """
    began = time.perf_counter()
    answers = offline.generate_many(requests)
    seconds = time.perf_counter() - began
    if any(
        one[0].completion_tokens != request.sampling.max_new_tokens
        for one, request in zip(answers, requests, strict=True)
    ):
        raise RuntimeError("an answer ended before its length")
    return len(requests) / seconds
