"""``serve/disconnect``: how soon a client that goes away in the middle of its answer gives its slot to the next.

Both endpoints have one slot here. A client reads the beginning of a long answer while another one waits; then it closes
its connection, and the clock runs until the other one has its first text, its own first step included.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator

import aiohttp

from benchmarks.report import Result
from benchmarks.serve_load import ask, chunks, questions, session
from benchmarks.serve_sides import checkpoint, dtype_name, endpoint, naive

LONG = 240
READ = 3
"""Pieces of text that are read before leaving."""
WAITS_S = 0.5
"""The other client has been waiting so long by then: its recording is decoded and encoded."""
TRIALS, BASELINE_TRIALS = 10, 3
NAIVE_IS = (
    "plain FastAPI with a lock and generate in a thread, which goes on after its client has gone (less is better)"
)


def disconnect() -> Iterator[Result]:
    """Seconds from the closed connection to the next client's first text."""
    with checkpoint() as made:
        with endpoint(made, "engine.max_num_seqs=1", f"serve.max_new_tokens={LONG}") as url:
            idle, ours = measure(url, TRIALS)
        with naive(made) as url:
            baseline_idle, baseline = measure(url, BASELINE_TRIALS)
    config = {
        "trials": [f"{one:.3f}" for one in ours],
        "baseline_trials": [f"{one:.2f}" for one in baseline],
        "longest_s": max(ours),
        "first_text_when_idle_s": idle,
        "baseline_first_text_when_idle_s": baseline_idle,
        "answer_tokens": LONG,
        "dtype": dtype_name(),
    }
    yield Result("serve/disconnect", statistics.median(ours), statistics.median(baseline), "s", NAIVE_IS, config)


def measure(url: str, trials: int) -> tuple[float, list[float]]:
    """Seconds to the first text of an idle endpoint, and from leaving to the next client's in each trial."""
    return asyncio.run(_measure(url, trials))


async def _measure(url: str, trials: int) -> tuple[float, list[float]]:
    short = _body(1)
    async with session() as http:
        idle = [(await ask(http, url, short)).first for _ in range(5)]
        return statistics.median(idle), [await freed(http, url, short) for _ in range(trials)]


async def freed(http: aiohttp.ClientSession, url: str, short: bytes) -> float:
    """One trial.

    Raises:
        RuntimeError: the second client did not have to wait, so nothing was measured.
    """
    headers = {"Content-Type": "application/json"}
    async with http.post(f"{url}/v1/chat/completions", data=_body(LONG), headers=headers) as response:
        pieces = aiter(chunks(response))
        for _ in range(READ):
            await anext(pieces)
        began = time.perf_counter()
        other = asyncio.create_task(ask(http, url, short))
        await asyncio.sleep(WAITS_S)
        if other.done():
            raise RuntimeError(f"{url}: the slot was not taken")
        left = time.perf_counter()
        response.close()
    return began + (await other).first - left


def _body(max_tokens: int) -> bytes:
    (question,) = questions(1)
    return type(question)(question.text, question.recordings, max_tokens).body()
