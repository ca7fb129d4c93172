"""How fast a job goes on one worker: given, measured, or estimated; each rate says which."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from stetholm.errors import UserError
from stetholm.settings import PlanSettings, Settings

JobName = Literal["ingest", "align", "sft", "prefer", "dpo", "evaluate"]
JOBS: tuple[JobName, ...] = get_args(JobName)

GENERATES = "ours greedy, theirs beam 5"
"""Which of the lines of generate/published is our usual decoding."""


@dataclass(frozen=True)
class Rate:
    """Samples a second of one worker, and where the number comes from."""

    value: float
    origin: str


def rate_of(job: JobName, settings: Settings, results: Path) -> Rate:
    """The rate of a job: plan.rates, else a measured line that holds for it, else an estimate.

    Args:
        job: which.
        settings: the tree.
        results: folder of the benchmarks' lines; it need not be there.

    Raises:
        UserError: there is none; the message says what to give.
    """
    plan = settings.plan
    unknown = sorted(set(plan.rates) - set(JOBS))
    if unknown:
        raise UserError(f"plan.rates.{unknown[0]}: no such job; there are {', '.join(JOBS)}")
    if job in plan.rates:
        if plan.rates[job] <= 0:
            raise UserError(f"plan.rates.{job} is {plan.rates[job]:g}: it must be above 0")
        return Rate(plan.rates[job], "given: plan.rates")
    found = measured(job, settings, results)
    if found is None and settings.stage("sft").use_gpu and job not in ("ingest", "align"):
        found = estimated(job, settings)
    if found is None:
        raise UserError(f"nothing is known of the rate of {job}: give plan.rates.{job}=<samples a second and worker>")
    return found


# --- measured ------------------------------------------------------------------------------------------------------


def measured(job: JobName, settings: Settings, results: Path) -> Rate | None:
    """The newest line that holds for ``job``; CPUs' lines do not hold for GPUs, except of work that CPUs do."""
    if job == "ingest":
        return _newest(results, "data/published", lambda c: c["recordings"] / c["ingest_seconds_once"] / c["cpus"])
    if job == "align":
        return _newest(results, "encoders/clip", _encoder_trains, encoder=settings.model.audio_encoder, batch=16)
    if settings.stage("sft").use_gpu or settings.model.language_model != "smollm2-135m":
        return None
    if job in ("sft", "dpo"):
        return _newest(results, f"train/{job}", lambda c: c["ours"] / c.get("threads", 2), side="auto")
    tokens = settings.plan.answer_tokens
    wanted = {"decoding": GENERATES, "prompts": 16}
    return _newest(results, "generate/published", lambda c: c["tokens_per_second"] / tokens / c["threads"], **wanted)


def _encoder_trains(line: dict[str, Any]) -> float:
    """A training step is three forward passes; the benchmark makes one. Of a CPU: a GPU is faster."""
    return float(line["ours"]) / 3 / line["threads"]


def _newest(results: Path, bench: str, per_worker: Any, **wanted: Any) -> Rate | None:
    lines = [line for line in _lines(results, bench) if all(line.get(key) == value for key, value in wanted.items())]
    if not lines:
        return None
    last = lines[-1]
    return Rate(float(per_worker(last)), f"measured: {bench}, {last['device']}, {last['file']}")


def _lines(results: Path, bench: str) -> Iterator[dict[str, Any]]:
    """Lines of a benchmark, oldest first, with their configuration's entries among their own."""
    for file in sorted(results.glob("*.jsonl")):
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line["bench"] == bench:
                yield {**line["config"], **{key: line[key] for key in ("ours", "device")}, "file": file.name}


# --- estimated -----------------------------------------------------------------------------------------------------


def estimated(job: JobName, settings: Settings) -> Rate:
    """From model FLOPs, as training.flops counts them, and the utilisation that the plan assumes.

    Raises:
        UserError: the GPU or the language model's sizes are not known.
    """
    from stetholm.training.flops import PEAKS

    plan = settings.plan
    if plan.gpu not in PEAKS:
        raise UserError(f"plan.gpu={plan.gpu}: its peak is not known; one of {', '.join(PEAKS)}, or give plan.rates")
    trains = job in ("sft", "dpo")
    share = plan.train_mfu if trains else plan.generate_mfu
    origin = f"estimated: {share:.0%} of an {plan.gpu}'s {PEAKS[plan.gpu] / 1e12:g} TFLOP/s"
    return Rate(PEAKS[plan.gpu] * share / flops_of(job, settings), origin)


def flops_of(job: JobName, settings: Settings) -> float:
    """Model FLOPs of a sample of the language model; encoder, projector and LoRA add some per cent and are left out."""
    from stetholm.training.memory_plan import decoder_of

    plan, decoder = settings.plan, decoder_of(settings.model.language_model)
    head = decoder.vocabulary * decoder.width
    body = decoder.parameters - head * (1 if decoder.tied else 2)
    attention = decoder.layers * decoder.queries * plan.tokens
    if job in ("prefer", "evaluate"):
        return plan.tokens * (2 * body + 4 * attention) + 2 * head * plan.answer_tokens
    passes = 4 if job == "sft" else 6  # forward, backward through frozen weights; mDPO's reference once forward
    rows = 1 if job == "sft" else 3
    return rows * (plan.tokens * (passes * body + 3 * passes * attention) + passes * head * plan.answer_tokens)


def of_plan(plan: PlanSettings) -> str:
    """The assumptions, in a line."""
    return (
        f"{plan.tokens} tokens a sample, {plan.answer_tokens} of them the response's; "
        f"{plan.fixed_seconds:g} s a job and {plan.node_seconds:g} s to start nodes; "
        f"a doubling of workers leaves {plan.doubling_efficiency:.0%} of the speed"
    )
