"""The judge's verdicts over all answers of an evaluation, and how they agree with the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

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
    """Who judged by which prompt, how many answers, agreement with the labels, and why answers went unjudged."""
    pairs = [(verdict, one.label_match.get(name)) for one in scored for name, verdict in one.verdicts.items()]
    verdicts = [verdict for verdict, _ in pairs]
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.correct is None)
    return {
        "name": judge.name,
        "prompt": judge.prompt,
        "judged": sum(verdict.correct is not None for verdict in verdicts),
        "unjudged": sum(reasons.values()),
        "reasons": reasons.most_common(MOST_REASONS),
        "agreement": agreement([verdict.correct for verdict in verdicts], [label for _, label in pairs]),
        "replies": judge.replies,
        "tokens": {"prompt": judge.prompt_tokens, "completion": judge.completion_tokens},
    }
