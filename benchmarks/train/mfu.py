"""``train/mfu``: which share of a GPU's peak LoRA SFT of a random 4B model of Gemma 3's shape reaches.

The FLOPs are those that :mod:`stetholm.training.flops` counts: of real tokens, without padding and recomputation; what
is frozen costs no gradient of its own. The peak is that of a large matrix product in the same number format, measured
between the turns. Without a GPU a small model of the same shape runs on the processor, which says that the benchmark
works and no more.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from benchmarks.report import Result
from benchmarks.train.ours import train_ours
from benchmarks.train.samples import COUNT
from benchmarks.train.sides import Turn, started
from stetholm.model.dtype import fast_dtype
from stetholm.model.language import EMBEDDED_LM, load_tokenizer
from stetholm.settings import TrainSettings
from stetholm.training.fit import worker_environment
from stetholm.training.flops import device_peak, measured_peak

ROUNDS = 7


@dataclass(frozen=True)
class Form:
    """A size of the benchmark.

    Attributes:
        name: said in the results.
        shape: of the language model: Gemma3TextConfig's arguments.
        batches: settings of the stage, a result each.
        steps: of a turn.
        samples: how many there are: enough to fill the largest batch.
    """

    name: str
    shape: dict[str, Any]
    batches: tuple[dict[str, int], ...]
    steps: int
    samples: int = COUNT


GPU = Form(
    "random Gemma-3-shaped 4B",
    {
        "vocab_size": 262_208,
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
    },
    ({"batch_size": 16}, {"tokens_per_batch": 4096}, {"tokens_per_batch": 16_384}),
    steps=8,
    samples=1178,
)
"""MedGemma-4B's text model; batch 16 is the published one. The samples are all of the embedded corpus with one
recording: some 42,000 tokens."""
CPU = Form(
    "small CPU form: random, Gemma-3-shaped, 6 layers of width 640",
    {
        "vocab_size": 49_664,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
    },
    ({"batch_size": 16},),
    steps=2,
)


def mfu() -> Iterator[Result]:
    """On a GPU the real form; without one, the small form, which says so."""
    gpu = torch.cuda.is_available()
    if not gpu:
        message = "bench: train/mfu needs a GPU, and there is none: the small form on the processor has no goal to meet"
        print(message, file=sys.stderr, flush=True)
    form = GPU if gpu else CPU
    with random_model(form, "cuda" if gpu else "cpu") as folder:
        for batches in form.batches:
            yield share_of_peak(form, folder, batches, gpu)


def share_of_peak(form: Form, folder: str, batches: dict[str, int], gpu: bool) -> Result:
    """Training by turns with matrix products."""
    dtype, kind = fast_dtype(gpu), "cuda" if gpu else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    train: dict[str, Any] = {"stage": "sft", "use_gpu": gpu, "zero_stage": 0 if gpu else 2, **batches}
    with started(
        train_ours,
        variables=worker_environment(TrainSettings(use_gpu=gpu)),
        model={"language_model": folder},
        samples=form.samples,
        **train,
    ) as side:
        side.turn(form.steps)
        turns, peaks = [], []
        for _ in range(ROUNDS):
            peaks.append(measured_peak(dtype, kind))
            turns.append(side.turn(form.steps))
        memory = side.end()
    return _result(form, turns, peaks, {**batches, "dtype": str(dtype), "peak_mib": memory / 2**20}, dtype, gpu)


def _result(
    form: Form, turns: list[Turn], peaks: list[float], config: dict[str, Any], dtype: torch.dtype, gpu: bool
) -> Result:
    seconds = sum(turn.seconds for turn in turns)
    reached, peak = sum(turn.flops for turn in turns) / seconds, median(peaks)
    config |= {
        "form": form.name,
        "tokens_per_s": sum(turn.tokens for turn in turns) / seconds,
        "samples_per_s": sum(turn.samples for turn in turns) / seconds,
        "mfu": reached / device_peak(dtype, gpu),
        "goal": 0.4 if gpu else "none without a GPU",
    }
    baseline_is = "the measured peak of a square matrix product in the same number format"
    return Result("train/mfu", reached / 1e12, peak / 1e12, "TFLOP/s on real tokens", baseline_is, config)


@contextlib.contextmanager
def random_model(form: Form, device: str) -> Iterator[str]:
    """A folder with a random language model of the form's shape and the embedded model's tokenizer."""
    with tempfile.TemporaryDirectory(prefix="stetholm-bench-") as folder:
        torch.manual_seed(0)
        with torch.device(device):
            model: Any = Gemma3ForCausalLM(Gemma3TextConfig(**form.shape))
        model.to(torch.bfloat16).save_pretrained(Path(folder))
        load_tokenizer(EMBEDDED_LM).save_pretrained(folder)
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
        yield folder
