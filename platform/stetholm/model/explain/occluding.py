"""Occlusion over time: which seconds of a recording an answer rests on.

With ``lp(y | a)`` the length-averaged log-probability of the answer y under the recordings a, as in mDPO, and ``a - w``
the same with the frames of window w at the clip's floor,

    evidence(w) = lp(y | a) - lp(y | a - w)        in nats a token

It is positive where the answer needs these seconds, negative where it would be likelier without them. After Zeiler &
Fergus, "Visualizing and understanding convolutional networks" (ECCV 2014), along one axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stetholm.errors import UserError
from stetholm.model.explain.asking import Asked, ask
from stetholm.model.explain.clip import Clip, check_windows, frames_between, windows
from stetholm.model.processing_stetholm import StethoLMProcessor
from stetholm.model.response import IGNORE, ResponseTokens

Variant = tuple[int, NDArray[np.float32]]
"""A recording's place in the prompt, and its log-mel with a window gone."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """Evidence over the W windows of one recording, for an answer of G tokens.

    Attributes:
        clip: the recording.
        starts: (W,) seconds.
        stops: (W,) seconds; windows overlap, and the last ends with the recording.
        token_evidence: (W, G) log-probability that each token of the answer loses without the window, in nats.
    """

    clip: Clip
    starts: NDArray[np.float64]
    stops: NDArray[np.float64]
    token_evidence: NDArray[np.float32]

    @cached_property
    def evidence(self) -> NDArray[np.float32]:
        """(W,) the mean over the answer's tokens."""
        return self.token_evidence.mean(axis=1)

    @cached_property
    def by_frame(self) -> NDArray[np.float32]:
        """(frames of sound,) the mean evidence of the windows that hold each frame."""
        total, count = np.zeros((2, self.clip.frames), np.float32)
        for start, stop, value in zip(self.starts, self.stops, self.evidence, strict=True):
            inside = frames_between(start, stop)
            total[inside] += value
            count[inside] += 1
        return np.divide(total, np.maximum(count, 1), dtype=np.float32)

    @cached_property
    def by_second(self) -> NDArray[np.float32]:
        """(whole seconds begun,) the mean of :attr:`by_frame` over each second."""
        seconds = math.ceil(self.clip.seconds)
        frames = [self.by_frame[frames_between(second, second + 1)] for second in range(seconds)]
        return np.array([part.mean() if len(part) else 0.0 for part in frames], np.float32)

    def inside(self, spans: Sequence[tuple[float, float]]) -> tuple[float | None, float]:
        """How much lies within ``spans`` (start, end in seconds), which may overlap.

        Returns:
            The share of the positive evidence (None: there is none), and the share of the time.
        """
        within = np.zeros(self.clip.frames, bool)
        for start, end in spans:
            within[frames_between(start, end)] = True
        positive = np.maximum(self.by_frame, 0.0)
        total = float(positive.sum())
        return float(positive[within].sum()) / total if total > 0 else None, float(within.mean())


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What each window of each recording adds to an answer of G tokens.

    Attributes:
        instruction: the question.
        answer: the answer's text.
        answer_ids: its G tokens, the end of sequence included.
        tokens: the same as text.
        logps: (G,) their log-probabilities with nothing occluded.
        recordings: in the prompt's order.
    """

    instruction: str
    answer: str
    answer_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logps: NDArray[np.float32]
    recordings: tuple[Timeline, ...]

    @property
    def logp(self) -> float:
        """The length-averaged log-probability of the answer with nothing occluded."""
        return float(self.logps.mean())

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: all but the evidence of single tokens."""
        timelines = [
            {
                "seconds": round(line.clip.seconds, 3),
                "starts": np.round(line.starts, 3).tolist(),
                "stops": np.round(line.stops, 3).tolist(),
                "evidence": np.round(line.evidence, 5).tolist(),
                "by_second": np.round(line.by_second, 5).tolist(),
            }
            for line in self.recordings
        ]
        return {
            "tokens": list(self.tokens),
            "logps": np.round(self.logps, 5).tolist(),
            "logp": round(self.logp, 5),
            "recordings": timelines,
        }


@torch.no_grad()
def occlusion(
    model: Any,
    processor: StethoLMProcessor,
    instruction: str,
    recordings: Any,
    answer: str | Sequence[int] | None = None,
    window_seconds: float = 1.0,
    hop_seconds: float = 0.5,
    *,
    dataset: str | None = None,
    sampling_rate: int | None = None,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
    **generation: Any,
) -> Occlusion:
    """Which seconds of the recordings change the answer.

    Each window is one row: its recording is encoded anew, the others are not. Of the language model's pass nothing can
    be shared among rows, because the recordings stand before the text. It changes nothing in the model.

    Args:
        model: in eval mode; its adapters may be merged or not, and PEFT may be wrapped around it. In bfloat16 rounding
            alone gives evidence of about a hundredth: use float32 where the model fits.
        processor: the one that goes with it.
        instruction: the question.
        recordings: one or several, each a :class:`~stetholm.model.explain.clip.Clip`, a waveform (n,), a path or the
            bytes of an audio file.
        answer: whose evidence to look for, as text (e.g. a reference answer) or token ids; default: the model's own,
            generated.
        window_seconds: length of a window.
        hop_seconds: from one window's start to the next one's; not more than the window.
        dataset: chooses the domain sentence.
        sampling_rate: of waveforms, in Hz.
        max_new_tokens: of a generated answer.
        batch_size: rows of a forward pass.
        on_progress: called after each pass with how many windows are done, and of how many.
        **generation: how to generate an answer, as ``generate`` of transformers takes it; default: greedily.

    Raises:
        UserError: there is no recording, one cannot be used, or the sequence is too long.
        ValueError: the model is in training mode, or windows of this length and hop leave gaps.
    """
    check_windows(window_seconds, hop_seconds)
    asked = ask(
        model, processor, instruction, recordings, answer=answer, dataset=dataset, sampling_rate=sampling_rate,
        max_new_tokens=max_new_tokens, generation=generation,
    )  # fmt: skip
    if not asked.clips:
        raise UserError("occlusion needs a recording: give one or more")
    bounds = [windows(clip.seconds, window_seconds, hop_seconds) for clip in asked.clips]
    variants = [(place, clip.without(*w)) for place, clip in enumerate(asked.clips) for w in bounds[place]]
    logps, lost = _evidence(asked, variants, batch_size, on_progress)
    parts = np.split(lost, np.cumsum([len(spans) for spans in bounds])[:-1])
    timelines = [_timeline(*each) for each in zip(asked.clips, bounds, parts, strict=True)]
    tokens = asked.tokens[asked.prompt_length :]
    return Occlusion(instruction, asked.answer, asked.answer_ids, tokens, logps, tuple(timelines))


def _timeline(clip: Clip, spans: Sequence[tuple[float, float]], token_evidence: NDArray[np.float32]) -> Timeline:
    starts, stops = np.array(spans, np.float64).T
    return Timeline(clip, starts, stops, token_evidence)


def _evidence(
    asked: Asked, variants: Sequence[Variant], batch_size: int, on_progress: Callable[[int, int], None] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Log-probabilities (G,) with nothing occluded, and what each variant loses of them (variants, G)."""
    changed = [n for n, (place, mel) in enumerate(variants) if not np.array_equal(mel, asked.clips[place].log_mel)]
    rows: list[Variant | None] = [None, *(variants[number] for number in changed)]
    scored: list[NDArray[np.float32]] = []
    for start in range(0, len(rows), batch_size):
        scored += _logps(asked, rows[start : start + batch_size])
        if on_progress is not None:
            on_progress(len(scored) - 1, len(rows) - 1)
    lost = np.zeros((len(variants), len(scored[0])), np.float32)
    # A window in which nothing changed, because it was silent, loses nothing.
    lost[changed] = scored[0] - np.array(scored[1:], np.float32).reshape(-1, len(scored[0]))
    return scored[0], lost


def _logps(asked: Asked, batch: Sequence[Variant | None]) -> Iterator[NDArray[np.float32]]:
    """Log-probability (G,) of each token of the answer, for each row."""
    model = asked.model
    assert asked.prefix is not None
    recordings = len(asked.clips)
    prefix = asked.prefix.repeat(len(batch), 1, 1)
    occluded = [(row, variant) for row, variant in enumerate(batch) if variant is not None]
    if occluded:
        mels = torch.from_numpy(np.stack([mel for _, (_, mel) in occluded]))
        places = [row * recordings + place for row, (place, _) in occluded]
        prefix[places] = model.encode_audio(mels.to(model.device))
    # Rows are equally long, so there is no padding and no mask.
    ids = torch.tensor([asked.ids], device=model.device).repeat(len(batch), 1)
    labels = ids.clone()
    labels[:, : asked.prompt_length] = IGNORE
    hidden = model.model(input_ids=ids, audio_embeds=prefix, use_cache=False).last_hidden_state
    for states, targets in zip(hidden.split(1), labels.split(1), strict=True):
        # One row at a time: logits over a large vocabulary are what takes memory.
        yield -ResponseTokens.select(states, targets).losses(model.logits).cpu().numpy()
