"""``serve/overhead``: what Ray Serve adds to a request, with a model that answers at once.

The endpoint's own application, with the same checks and the same JSON, runs on Serve (proxy, ingress replica, model
replica: three processes) and in one plain uvicorn process; requests go to both by turns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.report import Result
from benchmarks.serve_empty import CLIENTS, on_serve
from benchmarks.serve_load import Load, Question, put_load
from benchmarks.serve_sides import started
from stetholm.serving.engine import Request, Sampling

TURNS, STREAMED_TURNS, ASKED = 10, 4, 50
"""Turns of each side, whole and streamed; requests in one, one after the other."""
TOKENS = 32
"""Of a streamed answer."""
PLAIN_IS = "the same application in one plain uvicorn process, without Serve (less is better)"
SHORT = Question("Is this heart sound normal or abnormal?", (), 1)
LONG = Question("Is this heart sound normal or abnormal?", (), TOKENS)


def overhead() -> Iterator[Result]:
    """Milliseconds of a whole answer, and of a token of a streamed one; requests a second of many clients."""
    with on_serve() as (ours, handle), started([sys.executable, "-m", "benchmarks.serve_empty"]) as plain:
        for url in (ours, plain):
            put_load(url, [SHORT] * ASKED, clients=1, stream=False)
        bare = handle_ms(handle)
        yield one_request([by_turns(ours, plain, SHORT, stream=False) for _ in range(TURNS)], bare)
        yield one_token([by_turns(ours, plain, LONG, stream=True) for _ in range(STREAMED_TURNS)])
        yield many([(busy(ours), busy(plain)) for _ in range(3)])


def by_turns(ours: str, plain: str, question: Question, stream: bool) -> tuple[Load, Load]:
    """A turn of each: one client, one request after the other."""
    first, second = (put_load(url, [question] * ASKED, clients=1, stream=stream) for url in (ours, plain))
    return first, second


def busy(url: str) -> Load:
    """Many clients, answers of one token."""
    return put_load(url, [SHORT] * (20 * CLIENTS), clients=CLIENTS, stream=False)


def milliseconds(loads: list[Load], percent: float) -> float:
    """That percentile of what an answer took."""
    return 1e3 * float(np.percentile([one.seconds for load in loads for one in load.seen], percent))


def one_request(turns: list[tuple[Load, Load]], bare: float) -> Result:
    """A whole answer."""
    ours, plain = ([*column] for column in zip(*turns, strict=True))
    config: dict[str, Any] = {
        "what": "one request, p50",
        "overhead_ms": milliseconds(ours, 50) - milliseconds(plain, 50),
        "p99_ms": milliseconds(ours, 99),
        "baseline_p99_ms": milliseconds(plain, 99),
        "bare_handle_p50_ms": bare,
        "requests": len(turns) * ASKED,
    }
    return Result("serve/overhead", milliseconds(ours, 50), milliseconds(plain, 50), "ms", PLAIN_IS, config)


def one_token(turns: list[tuple[Load, Load]]) -> Result:
    """A token of a streamed answer."""
    ours, plain = (milliseconds([*column], 50) / TOKENS for column in zip(*turns, strict=True))
    config = {"what": f"a token of a streamed answer of {TOKENS}", "overhead_ms": ours - plain}
    return Result("serve/overhead", ours, plain, "ms", PLAIN_IS, config)


def many(turns: list[tuple[Load, Load]]) -> Result:
    """Requests a second, all cores busy with them, as the time that one takes."""
    ours, plain = (1e3 / max(load.answers_per_second for load in column) for column in zip(*turns, strict=True))
    config = {"what": f"one of {CLIENTS} clients' requests, all cores busy", "requests_per_second": 1e3 / ours}
    return Result("serve/overhead", ours, plain, "ms", PLAIN_IS, config)


def handle_ms(handle: Any) -> float:
    """Median milliseconds of a call through the model replica's handle, from this process, without HTTP."""
    request = Request(SHORT.text, sampling=Sampling(max_new_tokens=1))
    took = []
    for _ in range(TURNS * ASKED):
        began = time.perf_counter()
        handle.complete.remote(request).result()
        took.append(time.perf_counter() - began)
    return 1e3 * float(np.median(took))
