"""Candidates of an example: how each is sampled, and which pair they make.

Published recipe: K = 5 candidates at temperatures 0.7, 0.85, 1.0, 1.15, 1.3, scored by BERTScore F1 against the
reference answer; the best is chosen, the worst rejected, and an example whose candidates are equal is skipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from stetholm.evaluation.examples import Example
from stetholm.evaluation.generation import Question
from stetholm.serving.engine import Sampling
from stetholm.settings import PreferSettings

SAME_SCORE = 1e-6
"""Scores nearer than this are a tie: rounding, not preference."""


@dataclass(frozen=True)
class Scored:
    """An example's candidates with their scores; None: the scorer had none for it."""

    example: Example
    candidates: tuple[str, ...]
    scores: tuple[float | None, ...]

    def pair(self) -> tuple[str, str] | None:
        """Chosen and rejected text; None where the candidates tie, fewer than two have scores or the best is empty."""
        known = {place: score for place, score in enumerate(self.scores) if score is not None}
        if not known:
            return None
        best, worst = (pick(known, key=lambda place: known[place]) for pick in (max, min))
        chosen, rejected = self.candidates[best], self.candidates[worst]
        tie = chosen == rejected or known[best] - known[worst] < SAME_SCORE
        return None if tie or not chosen else (chosen, rejected)


def samplings(settings: PreferSettings, seed: int, sample_id: str) -> tuple[Sampling, ...]:
    """One sampling a candidate: the temperatures in turn, each candidate with a seed of its own.

    The seed depends on the run's seed, the sample and the candidate's number, so that a job that goes on after a
    crash draws what it would have drawn.
    """
    temperatures = islice(cycle(settings.temperatures), settings.candidates)
    return tuple(
        Sampling(settings.max_new_tokens, temperature, seed=_seed(seed, sample_id, index))
        for index, temperature in enumerate(temperatures)
    )


def _seed(seed: int, sample_id: str, index: int) -> int:
    digest = hashlib.sha256(f"{seed}/{sample_id}/{index}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def question(example: Example, settings: PreferSettings, seed: int) -> Question:
    """What the model is asked for ``example``: its own instruction and recordings, K times."""
    drawn = samplings(settings, seed, example.sample_id)
    return Question(example.instruction, example.dataset, example.recording_ids, drawn)


def gather(examples: Sequence[Example], texts: Sequence[Sequence[str]], scores: Sequence[float | None]) -> list[Scored]:
    """Examples with their candidates; ``scores`` runs over all candidates in order."""
    remaining = iter(scores)
    return [
        Scored(example, tuple(answers), tuple(islice(remaining, len(answers))))
        for example, answers in zip(examples, texts, strict=True)
    ]
