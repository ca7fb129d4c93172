"""Evidence of an answer, second by second: what the answer loses without each of them (occlusion).

The engine that generates need not be the one that explains: occlusion scores a given answer, which takes the model
itself and not its scheduler.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from stetholm.model.checkpoint import load_checkpoint
from stetholm.model.dtype import fast_dtype
from stetholm.model.explain import Clip, Timeline, occlusion
from stetholm.model.modeling_stetholm import StethoLMForConditionalGeneration
from stetholm.serving.analysis import Evidence, Second
from stetholm.serving.engine import Engine, EngineBusy, Request
from stetholm.storage import Storage

WINDOW_SECONDS = 1.0
ROWS_AT_ONCE = 8
MAX_WAITING = 3
"""Each holds a thread of its replica."""
Parts = tuple[Any, Any]
"""Model and processor."""


class NotWanted(Exception):
    """Whoever asked for evidence has gone."""


class Explainer:
    """Explains answers, one at a time: it shares the processor with whatever generates. Few may wait."""

    def __init__(self, parts: Callable[[], Parts], max_waiting: int = MAX_WAITING) -> None:
        """``parts`` is called at the first explanation. ``max_waiting``: beside the one that is explained."""
        self._load = parts
        self._parts: Parts | None = None
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(1 + max_waiting)

    def explain(
        self, request: Request, answer: str, seconds: Sequence[float], gone: threading.Event | None = None
    ) -> list[Evidence]:
        """Evidence of each recording of ``request`` for ``answer``, in order; none without recordings.

        Args:
            request: what was asked.
            answer: the answer's text as it was generated.
            seconds: how much of each recording is sound, at most 7; the rest is padding.
            gone: set when nobody wants it any more; it stops at the next pass.

        Raises:
            EngineBusy: enough are waiting.
            NotWanted: ``gone`` was set.
        """
        if not len(request.features):
            return []
        if not self._places.acquire(blocking=False):
            raise EngineBusy("enough answers wait for their evidence")
        try:
            with self._turn:
                return self._explained(request, answer, seconds, gone or threading.Event())
        finally:
            self._places.release()

    def _explained(
        self, request: Request, answer: str, seconds: Sequence[float], gone: threading.Event
    ) -> list[Evidence]:
        def look(*_: int) -> None:
            if gone.is_set():
                raise NotWanted

        look()
        if self._parts is None:
            model, processor = self._load()
            # A tokenizer cannot be set up in two threads at once: the engine keeps its own.
            self._parts = model, copy.deepcopy(processor)
        found = occlusion(
            *self._parts,
            request.instruction,
            [Clip(features, length) for features, length in zip(request.features, seconds, strict=True)],
            self._answer_ids(request, answer),
            WINDOW_SECONDS,
            WINDOW_SECONDS,
            dataset=request.dataset,
            batch_size=ROWS_AT_ONCE,
            on_progress=look,
        )
        return [_evidence(line) for line in found.recordings]

    def _answer_ids(self, request: Request, answer: str) -> list[int]:
        """Tokens of the answer, as many as the context has room for: written anew they may be a few more."""
        assert self._parts is not None
        model, processor = self._parts
        asked = (request.instruction, len(request.features), request.dataset)
        prompt = len(processor.encode_prompt(*asked))
        ids = processor.encode_pair(asked[0], answer, *asked[1:])["input_ids"][prompt:]
        context = int(model.config.get_text_config().max_position_embeddings)
        return list(ids[: context - prompt])


def explainer_of(engine: Engine, checkpoint_uri: str | None = None, storage: Storage | None = None) -> Explainer:
    """Explains with the engine's own model where it holds one, else with a copy that is loaded when first needed."""
    model, processor = getattr(engine, "model", None), getattr(engine, "processor", None)
    if isinstance(model, StethoLMForConditionalGeneration) and processor is not None:
        return Explainer(lambda: (model, processor))
    if checkpoint_uri is None or storage is None:
        raise ValueError("this engine holds no model to explain with: name its checkpoint")
    return Explainer(lambda: _load(checkpoint_uri, storage))


def _load(checkpoint_uri: str, storage: Storage) -> Parts:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load_checkpoint(checkpoint_uri, storage, dtype=fast_dtype(device == "cuda"), merge=True)
    return model.to(torch.device(device)).eval(), processor  # type: ignore[arg-type]


def _evidence(line: Timeline) -> Evidence:
    length = line.clip.seconds
    return Evidence(
        seconds=[
            Second(start=float(second), end=round(min(second + 1.0, length), 3), value=round(float(value), 5))
            for second, value in enumerate(line.by_second)
        ]
    )
