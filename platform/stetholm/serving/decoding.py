"""Per-row sampling and stopping for ``generate``, so that requests with unlike settings share one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from stetholm.serving.engine import Sampling
from stetholm.serving.rows import Row

MIN_TEMPERATURE = 1e-3
"""Below this, logits / temperature leaves float32; the draw is the argmax long before."""


def row_generator(sampling: Sampling, index: int, device: torch.device) -> torch.Generator | None:
    """The random numbers of answer ``index``: its own, so that the batch it happens to run in changes nothing."""
    if sampling.temperature == 0:
        return None
    entropy = None if sampling.seed is None else [sampling.seed % 2**64, index]
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(seed)


def keep_top_p(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Nucleus of one row (vocabulary,): the likeliest tokens whose probabilities reach ``top_p``; others -inf."""
    ordered, order = scores.sort(descending=True)
    probabilities = ordered.softmax(-1)
    # A token stays while those before it have not reached top_p; so the first always stays.
    drop = probabilities.cumsum(-1) - probabilities >= top_p
    drop[0] = False
    return scores.index_fill(0, order[drop], float("-inf"))


def perturb(scores: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """Scores (vocabulary,) whose argmax is a draw: logits / temperature in the nucleus, plus Gumbel noise."""
    scores = scores.double() / max(sampling.temperature, MIN_TEMPERATURE)
    if sampling.top_p < 1:
        scores = keep_top_p(scores, sampling.top_p)
    # -log of an exponential variate is a Gumbel variate.
    return scores - torch.empty_like(scores).exponential_(generator=generator).log()


@dataclass
class Draws:
    """The draws of one answer, of whose tokens ``behind`` were drawn elsewhere before."""

    sampling: Sampling
    generator: torch.Generator
    behind: int = 0

    def perturb(self, scores: torch.Tensor) -> torch.Tensor:
        """Of ``scores`` (vocabulary,), those whose argmax is the next draw."""
        while self.behind:
            torch.empty_like(scores, dtype=torch.float64).exponential_(generator=self.generator)
            self.behind -= 1
        return perturb(scores, self.sampling, self.generator)


class RowSampler(LogitsProcessor):
    """Turns ``generate``'s argmax into sampling, row by row, by the Gumbel-max trick.

    argmax(logits / T + Gumbel noise) is a draw from softmax(logits / T). The noise comes from each row's own
    generator: a seeded request gives the same answer alone and in any batch, up to the rounding of batched products.
    """

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        """One generator a row that samples."""
        self._rows = [
            (row, Draws(row.prompt.request.sampling, generator, len(row.begun)))
            for row in rows
            if (generator := row_generator(row.prompt.request.sampling, row.index, device))
        ]
        self._places = {id(row): place for place, row in enumerate(rows)}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` (rows, vocabulary), float32."""
        if not self._rows:
            return scores
        scores = scores.clone()
        for row, draws in self._rows:
            if not row.done:
                place = self._places[id(row)]
                scores[place] = draws.perturb(scores[place])
        return scores


class RowStop(StoppingCriteria):
    """Hands each new token to its row, and ends the rows that are done or no longer wanted."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """``rows`` in the order of the batch."""
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """``input_ids`` (rows, tokens so far) -> which rows are done."""
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.push(token)
        return torch.tensor([row.done for row in self._rows], device=input_ids.device)


class BeamStop(StoppingCriteria):
    """Ends a beam search when nobody waits for any of its answers any more."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """``rows``: one a request."""
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """``input_ids`` (rows * beams, tokens so far)."""
        done = all(row.cancelled for row in self._rows)
        return torch.full((len(input_ids),), done, device=input_ids.device)
