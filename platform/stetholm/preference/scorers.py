"""How candidates are scored against the reference answer: BERTScore, or a judge (``prefer.scorer=judge``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from stetholm.errors import UserError
from stetholm.evaluation.examples import Example
from stetholm.evaluation.scorer_pool import PooledBertScorer
from stetholm.settings import Settings
from stetholm.storage import Storage

if TYPE_CHECKING:
    from stetholm.evaluation.judge import Judge

JUDGE = "judge"
"""The value of ``prefer.scorer`` that asks the judge of ``evaluate.judge``; any other names a BERTScore backbone."""

Texts = Sequence[Sequence[str]]
"""Of each example, its candidates."""


class CandidateScorer(Protocol):
    """Scores candidates; higher is better."""

    name: str

    def score(self, examples: Sequence[Example], texts: Texts) -> list[float | None]:
        """One score a candidate, running over all of them in order; None: not to be had."""
        ...


class ByBertScore:
    """BERTScore F1 against the example's reference."""

    def __init__(self, backbone: str, use_gpu: bool = False) -> None:
        self._scorer = PooledBertScorer(backbone, use_gpu)
        self.name = self._scorer.name

    def score(self, examples: Sequence[Example], texts: Texts) -> list[float | None]:
        """See :class:`CandidateScorer`."""
        candidates = [text for answers in texts for text in answers]
        references = [example.response for example, answers in zip(examples, texts, strict=True) for _ in answers]
        return list(self._scorer(candidates, references))


class ByJudge:
    """How much of the reference the judge finds right."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.name = judge.name

    def score(self, examples: Sequence[Example], texts: Texts) -> list[float | None]:
        """See :class:`CandidateScorer`; None where the judge gave no usable verdict."""
        asked = [(example, text) for example, answers in zip(examples, texts, strict=True) for text in answers]
        return self._judge.scores(
            [example.instruction for example, _ in asked],
            [example.response for example, _ in asked],
            [text for _, text in asked],
        )


def scorer_of(settings: Settings, storage: Storage) -> CandidateScorer:
    """The scorer that ``prefer.scorer`` names.

    Raises:
        UserError: there is no such backbone, or no judge in ``evaluate.judge``.
    """
    if settings.prefer.scorer != JUDGE:
        return ByBertScore(settings.prefer.scorer, settings.train.use_gpu)
    if not settings.evaluate.judge.model:
        raise UserError("prefer.scorer=judge needs a judge: set evaluate.judge.model (and evaluate.judge.base_url)")
    from stetholm.evaluation.judge import Judge  # here: a scorer of texts needs no client of endpoints

    return ByJudge(Judge(settings.evaluate.judge, storage, use_gpu=settings.train.use_gpu))
