"""What an encoder costs a clip: ``encoders/clip``, of cola, ast and clap at published sizes, with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import ASTModel, ClapAudioModelWithProjection, EfficientNetModel

from benchmarks.report import Result, median_round
from stetholm.model.encoders import build_encoder, encoder_class
from stetholm.model.encoders.base import N_FRAMES, N_MELS

BATCHES, DTYPES = (1, 16), (torch.float32, torch.bfloat16)
ROUNDS, CALLS = 3, {1: 5, 16: 1}
AS_IT_COMES = {
    "cola": "transformers' EfficientNetModel behind the 1-to-3 convolution, as it comes, eager, fp32",
    "ast": "transformers' ASTModel as it comes, eager, fp32",
    "clap": "transformers' ClapAudioModelWithProjection as it comes, eager, fp32",
}

Call = Callable[[torch.Tensor], Any]


def plain(name: str, config: Any) -> Call:
    """The baseline: transformers' own class of the same size, fed with the same spectrograms, in float32."""
    if name == "cola":
        stem, network = nn.Conv2d(1, 3, 3).eval(), EfficientNetModel(config).eval()
        return lambda clips: network(pixel_values=stem(clips.unsqueeze(1))).pooler_output
    if name == "ast":
        transformer = ASTModel(config).eval()
        return lambda clips: transformer(input_values=clips.transpose(1, 2) * 2 - 1).pooler_output
    clap = ClapAudioModelWithProjection(config).eval()
    return lambda clips: clap(input_features=clips.transpose(1, 2).unsqueeze(1)).audio_embeds


@torch.inference_mode()
def clips_per_second(encode: Call, clips: torch.Tensor) -> float:
    """Clips a second over some calls; the median call counts."""
    seconds = []
    for _ in range(CALLS[len(clips)]):
        started = time.perf_counter()
        encode(clips)
        seconds.append(time.perf_counter() - started)
    return len(clips) / median(seconds)


def compare(name: str, ours: nn.Module, theirs: Call, batch: int, dtype: torch.dtype) -> Result:
    """Ours in ``dtype`` against the baseline in float32, in turns; the round of the median ratio."""
    clips = torch.rand(batch, N_MELS, N_FRAMES, generator=torch.Generator().manual_seed(0))
    mine = clips.to(dtype)
    rounds = []
    for turn in range(ROUNDS + 1):
        pair = clips_per_second(ours, mine), 0.0, clips_per_second(theirs, clips)
        rounds += [pair] if turn else []  # the first warms up
    fast, slow = median_round(rounds)
    config = {
        "encoder": name,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        "ms_a_clip": 1000 / fast,
        "baseline_ms_a_clip": 1000 / slow,
    }
    return Result("encoders/clip", fast, slow, "clips/s", AS_IT_COMES[name], config)


def clip() -> Iterator[Result]:
    """One line an encoder, batch size and number format."""
    for name in AS_IT_COMES:
        torch.manual_seed(0)
        config = encoder_class(name).default_config()
        theirs, ours = plain(name, config), build_encoder(name, config).eval()
        for dtype, batch in product(DTYPES, BATCHES):
            yield compare(name, ours.to(dtype), theirs, batch, dtype)
