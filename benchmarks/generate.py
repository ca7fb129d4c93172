"""How fast answers come: ``generate/evaluate`` (one greedy answer each), ``generate/prefer`` (candidates)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from benchmarks.report import Result
from stetholm.audio.features import N_FRAMES, N_MELS
from stetholm.model.fresh import build_model
from stetholm.model.lora import merge_lora
from stetholm.serving.engine import Request, Sampling
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.settings import ModelSettings, PreferSettings

QUESTIONS = (
    "Is this heart sound normal or abnormal?",
    "What is the primary sound event in this audio?",
    "Generate a brief summary of the lung sound findings.",
    "Provide a diagnosis and explain your reasoning.",
)
ONE_BY_ONE = "the same engine, one request at a time, as the published scripts do"
TOKENS, PROMPTS, BATCH = 24, 16, 32


def engine() -> TransformersEngine:
    """The embedded model, untrained: speed does not depend on what it has learned."""
    model, processor = build_model(ModelSettings(), dtype=torch.float32)
    merge_lora(model)
    return TransformersEngine(model, processor, max_batch=BATCH)


def requests(sampling: Sampling) -> list[Request]:
    """Questions about random spectrograms."""
    rng = np.random.default_rng(0)
    return [
        Request(QUESTIONS[i % len(QUESTIONS)], rng.random((1, N_MELS, N_FRAMES), np.float32), sampling=sampling)
        for i in range(PROMPTS)
    ]


def tokens_per_second(running: TransformersEngine, batches: Sequence[list[Request]]) -> float:
    """Tokens a second over several calls of the engine."""
    started, tokens = time.perf_counter(), 0
    for batch in batches:
        answers = running.generate_many(batch)
        tokens += sum(answer.completion_tokens for one in answers for answer in one)
    return tokens / (time.perf_counter() - started)


def compare(bench: str, running: TransformersEngine, asked: list[Request]) -> Result:
    """All requests in one call against one call each, after one answer to warm up."""
    running.generate_many(asked[:1])
    config = {"requests": len(asked), "max_new_tokens": TOKENS, "max_batch": BATCH, "model": "smollm2-135m, fp32"}
    ours = tokens_per_second(running, [asked])
    return Result(bench, ours, tokens_per_second(running, [[one] for one in asked]), "tokens/s", ONE_BY_ONE, config)


def evaluate() -> Iterator[Result]:
    """Greedy answers, as the evaluation job makes them."""
    running = engine()
    yield compare("generate/evaluate", running, requests(Sampling(max_new_tokens=TOKENS)))
    running.close()


def prefer() -> Iterator[Result]:
    """Candidates at the published temperatures, as the preference job makes them."""
    running, temperatures = engine(), PreferSettings().temperatures
    plain = requests(Sampling(max_new_tokens=TOKENS, seed=0))[: PROMPTS // 4]
    asked = [
        replace(one, sampling=replace(one.sampling, temperature=temperature))
        for one in plain
        for temperature in temperatures
    ]
    yield compare("generate/prefer", running, asked)
    running.close()
