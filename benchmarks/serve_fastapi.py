"""``serve/fastapi``: our endpoint under 32 clients against plain FastAPI with ``generate`` for one request at a time.

The naive endpoint answers half of the questions before ours is up and half after it is down again, so that a machine
that grows slower or faster treats both alike. Each half keeps all its clients busy for most of its time.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.report import Result
from benchmarks.serve_load import CLIENTS, Load, Question, put_load, questions
from benchmarks.serve_sides import checkpoint, dtype_name, endpoint, naive

ASKED = 64
ROUNDS = 3
"""Of ours, each with all the questions; the median counts."""
WARM_UP = 4
NAIVE_IS = (
    "plain FastAPI, one process, a lock and transformers' generate for one request at a time, streamed; the same "
    "checkpoint and number format, adapters merged"
)


def fastapi() -> Iterator[Result]:
    """Answers a second, and the 99th percentile of the time to the first text."""
    asked = questions(ASKED)
    with checkpoint() as made:
        with naive(made) as url:
            baseline = naive_load(url, asked[::2])
        with endpoint(made) as url:
            put_load(url, questions(WARM_UP, seed=1))
            rounds = [put_load(url, asked) for _ in range(ROUNDS)]
        with naive(made) as url:
            baseline = both(baseline, naive_load(url, asked[1::2]))
    ours = median(rounds)
    config = {
        "clients": CLIENTS,
        "requests": len(asked),
        "max_tokens": sorted({question.max_tokens for question in asked}),
        "model": "smollm2-135m",
        "engine": "vllm",
        "dtype": dtype_name(),
        "first_text_p50_s": ours.first(50),
        "first_text_p99_s": ours.first(99),
        "baseline_first_text_p50_s": baseline.first(50),
        "baseline_first_text_p99_s": baseline.first(99),
        "tokens_per_second": ours.tokens_per_second,
        "baseline_tokens_per_second": baseline.tokens_per_second,
        "rounds": [f"{one.answers_per_second:.2f}" for one in rounds],
    }
    yield Result("serve/fastapi", ours.answers_per_second, baseline.answers_per_second, "answers/s", NAIVE_IS, config)
    first = f"{NAIVE_IS}; 99th percentile of the time to the first text (less is better)"
    yield Result("serve/fastapi", ours.first(99), baseline.first(99), "s", first, config)


def naive_load(url: str, asked: list[Question]) -> Load:
    """What the naive endpoint does with the questions, after a first one that does not count."""
    put_load(url, questions(1, seed=1))
    return put_load(url, asked)


def both(first: Load, second: Load) -> Load:
    """Two loads, one after the other."""
    return Load(first.seconds + second.seconds, first.seen + second.seen)


def median(rounds: list[Load]) -> Load:
    """The round of the median rate."""
    return sorted(rounds, key=lambda one: one.answers_per_second)[len(rounds) // 2]
