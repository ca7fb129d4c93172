"""Model FLOPs of a training step, and what the device could do at most: their ratio is the MFU.

The accounting is PaLM's (arXiv 2204.02311, appendix B) and torchtitan's, for a model most of which is frozen:

- a weight of the language model that is frozen costs 4 FLOPs a real token (2 forward, 2 for the gradient that goes
  through it to the prefix and to LoRA below), one that trains 6; PaLM's 6 N would count a gradient nobody computes;
- attention costs 12 L H Q a token and token of context, forward and backward, the causal half not deducted, counted
  on real lengths;
- the LM head costs 4 d V a scored token, as it is frozen and runs on these only; embedding look-ups are free;
- encoder and projector cost what torch counts for their forward, three times where they train;
- mDPO's reference is one forward more of everything but the encoder, unless its scores were computed ahead;
- alignment without captions runs the encoder and the projector alone; the texts it reads once each are not counted.

Recomputation under gradient checkpointing, padding, and the optimizer are not counted: they are what MFU is to show.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stetholm.audio.features import N_FRAMES, N_MELS
from stetholm.training.metrics import Counts

PEAKS = {
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
}
"""Dense bf16 FLOP/s by a part of the device's name, the longer first; from NVIDIA's data sheets, without sparsity."""


@dataclass(frozen=True)
class Costs:
    """Model FLOPs of a step, by what there is in it."""

    token: float = 0.0
    square: float = 0.0
    scored: float = 0.0
    recording: float = 0.0

    def of(self, counts: Counts) -> float:
        """FLOPs of a step that held ``counts``."""
        return (
            self.token * counts.tokens
            + self.square * counts.squares
            + self.scored * counts.scored
            + self.recording * counts.recordings
        )


def step_costs(model: Any, *, language: bool = True, reference: bool = False) -> Costs:
    """Costs of a training step of ``model``, whose ``requires_grad`` says what trains.

    Args:
        model: a StethoLMForConditionalGeneration.
        language: whether the step runs the language model.
        reference: whether a step scores its rows once more without gradient.
    """
    recording = _audio(model)
    if not language:
        return Costs(recording=recording)
    decoder, text = model.model.language_model, model.config.text_config
    frozen, training = _weights(decoder)
    head = math.prod(_shape(model.get_output_embeddings().weight))
    heads = text.num_attention_heads
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    attention = text.num_hidden_layers * width
    again = 1 if reference else 0
    return Costs(
        token=(4 + 2 * again) * frozen + (6 + 2 * again) * training,
        square=(12 + 4 * again) * attention,
        scored=(4 + 2 * again) * head,
        recording=recording,
    )


def _weights(decoder: nn.Module) -> tuple[int, int]:
    """Numbers of frozen and of trainable weights that multiply activations: matrices, but not embeddings."""
    counts = {False: 0, True: 0}
    for module in decoder.modules():
        if isinstance(module, nn.Embedding):
            continue
        for weight in module.parameters(recurse=False):
            shape = _shape(weight)
            counts[weight.requires_grad] += math.prod(shape) if len(shape) == 2 else 0
    return counts[False], counts[True]


def _shape(weight: Any) -> tuple[int, ...]:
    """The whole shape, also of a parameter that ZeRO-3 has partitioned."""
    return tuple(getattr(weight, "ds_shape", weight.shape))


def _audio(model: Any) -> float:
    """FLOPs of one recording through encoder and projector."""
    tower, projector = model.model.audio_tower, model.model.projector
    first = next(projector.parameters())
    modes = tower.training, projector.training
    tower.eval()  # one silent recording must not move batch-norm statistics
    projector.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as encoder:
        pooled = tower(torch.zeros(1, N_MELS, N_FRAMES, dtype=first.dtype, device=first.device))
    with torch.no_grad(), FlopCounterMode(display=False) as projected:
        projector(pooled)
    tower.train(modes[0])
    projector.train(modes[1])
    return sum(
        counter.get_total_flops() * (3 if any(weight.requires_grad for weight in part.parameters()) else 1)
        for counter, part in ((encoder, tower), (projected, projector))
    )


def device_peak(dtype: torch.dtype, use_gpu: bool) -> float:
    """FLOP/s that this process's device does at most: from the table, else of a matrix product measured now."""
    if use_gpu and dtype is torch.bfloat16:
        name = torch.cuda.get_device_name()
        for known, peak in PEAKS.items():
            if known in name:
                return peak
    return measured_peak(dtype, "cuda" if use_gpu else "cpu")


def measured_peak(dtype: torch.dtype, device: str, seconds: float = 0.2) -> float:
    """FLOP/s of the best of some square matrix products of ``dtype``, tried for about ``seconds``."""
    size = 8192 if device == "cuda" else 1024
    # Not drawn: the run's random numbers stay what they would be. Zeros would draw less power on a GPU.
    left = torch.linspace(-1, 1, size * size, device=device).reshape(size, size).to(dtype)
    best, until = math.inf, time.perf_counter() + seconds
    while not math.isfinite(best) or time.perf_counter() < until:
        _wait_for(device)
        started = time.perf_counter()
        left @ left
        _wait_for(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
