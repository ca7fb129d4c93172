"""The judge's verdicts over all answers of an evaluation, and how they agree with the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from stetholm.evaluation.conditions import CONDITIONS
from stetholm.evaluation.judge import Judge, Question, agreement
from stetholm.evaluation.scoring import Scored

MOST_REASONS = 5


def judge_all(judge: Judge, scored: Sequence[Scored], conditions: Sequence[str]) -> None:
    """Put a verdict on every answer under ``conditions``.

    Raises:
        EndpointError: the judge cannot be asked. Verdicts up to then are kept for the next start.
    """
    places = [(one, name) for one in scored for name in conditions if name in one.predictions]
    questions = [Question(one.example.instruction, one.example.response, one.predictions[name]) for one, name in places]
    for (one, name), verdict in zip(places, judge.verdicts(questions), strict=True):
        one.verdicts[name] = verdict


def judge_report(judge: Judge, scored: Sequence[Scored]) -> dict[str, Any]:
    """Who judged by which prompt, how many answers, why some went unjudged, and how the verdicts agree with the labels.

    The agreement is by condition, the audio as it is first: what control rows answer is wrong so often that it would
    make any judge agree.
    """
    verdicts = [verdict for one in scored for verdict in one.verdicts.values()]
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.correct is None)
    return {
        "name": judge.name,
        "prompt": judge.prompt,
        "judged": sum(verdict.correct is not None for verdict in verdicts),
        "unjudged": sum(reasons.values()),
        "reasons": reasons.most_common(MOST_REASONS),
        "agreement": {name: _agreement(scored, name) for name in CONDITIONS if any(name in s.verdicts for s in scored)},
        "replies": judge.replies,
        "tokens": {"prompt": judge.prompt_tokens, "completion": judge.completion_tokens},
    }


def _agreement(scored: Sequence[Scored], condition: str) -> dict[str, Any]:
    judged = [one for one in scored if condition in one.verdicts]
    return agreement(
        [one.verdicts[condition].correct for one in judged], [one.label_match.get(condition) for one in judged]
    )
