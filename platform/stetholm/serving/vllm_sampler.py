"""What runs inside vLLM's engine process: the reference's draws, and a watch on the process that owns the engine.

vLLM loads this module by name. A request that samples is greedy to vLLM: the noise is added to its logits here, from
the generator that the reference engine would use, so that a seed gives the same answer on both.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from stetholm.serving.decoding import Draws, row_generator
from stetholm.serving.engine import Sampling

OWNER = "STETHOLM_ENGINE_OWNER"
"""Environment: process id of the engine's owner."""
KEY = "stetholm"
"""Of ``SamplingParams.extra_args``: temperature, top_p, seed, the answer's index and how many tokens it began with."""
WATCH_SECONDS = 1.0


class SeededSampler(LogitsProcessor):
    """Adds each row's own Gumbel noise to its logits."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Called by vLLM in its engine process."""
        self._device = device
        self._draws: dict[int, Draws] = {}
        watch_owner()

    def is_argmax_invariant(self) -> bool:
        """It decides the argmax, so vLLM must apply it to greedy rows."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows as vLLM adds, removes and moves them."""
        if batch_update is None:
            return
        for place in batch_update.removed:
            self._draws.pop(place, None)
        for place, params, _, made in batch_update.added:
            # An answer that had to give its place away comes back with what it has so far.
            self._put(place, self._begin(params, len(made)))
        for source, target, direction in batch_update.moved:
            moved, other = self._draws.pop(source, None), self._draws.pop(target, None)
            self._put(target, moved)
            if direction == MoveDirectionality.SWAP:
                self._put(source, other)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """``logits`` (rows, vocabulary), float32."""
        for place, draws in self._draws.items():
            logits[place] = draws.perturb(logits[place])
        return logits

    def _put(self, place: int, draws: Draws | None) -> None:
        self._draws.pop(place, None)
        if draws is not None:
            self._draws[place] = draws

    def _begin(self, params: SamplingParams, made: int) -> Draws | None:
        chosen = (params.extra_args or {}).get(KEY)
        if chosen is None:
            return None
        sampling = Sampling(temperature=chosen["temperature"], top_p=chosen["top_p"], seed=chosen["seed"])
        generator = row_generator(sampling, chosen["index"], self._device)
        return None if generator is None else Draws(sampling, generator, chosen["begun"] + made)


def watch_owner() -> None:
    """End this process soon after its owner has gone, however that went: vLLM itself does not see a killed one."""
    owner = int(os.environ.get(OWNER, "0"))
    if not owner or owner == os.getpid():
        return

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="stetholm-owner-watch", daemon=True).start()
