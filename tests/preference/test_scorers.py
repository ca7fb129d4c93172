"""Candidates scored by BERTScore or by a judge."""

import json

import pytest

from stetholm.errors import UserError
from stetholm.evaluation.examples import Example
from stetholm.evaluation.metrics import BertScorer
from stetholm.preference.scorers import scorer_of
from stetholm.settings import load_settings
from tests.endpoint import endpoint, reply

EXAMPLES = [
    Example("s1", ("r",), "What?", "A murmur.", "Report", "d"),
    Example("s2", ("r",), "Who?", "No.", "Report", "d"),
]
TEXTS = [["A murmur.", "Wheezes."], ["No."]]


def test_each_candidate_is_scored_against_its_own_reference(storage):
    found = scorer_of(load_settings(environ={}), storage).score(EXAMPLES, TEXTS)
    assert found == BertScorer()(["A murmur.", "Wheezes.", "No."], ["A murmur.", "A murmur.", "No."])
    assert found[0] > found[1]


def test_a_judge_scores_and_says_nothing_where_it_cannot(storage):
    def answer(body, number):
        asked = body["messages"][0]["content"]
        if "Wheezes." in asked:
            return reply("I cannot say")
        return reply(json.dumps({"reason": "x", "score": 8, "correct": True}))

    with endpoint(answer) as server:
        judge = [f"evaluate.judge.base_url={server.url}", "evaluate.judge.model=grader", "evaluate.judge.retries=0"]
        scorer = scorer_of(load_settings(overrides=["prefer.scorer=judge", *judge], environ={}), storage)
        assert scorer.score(EXAMPLES, TEXTS) == [0.8, None, 0.8]
    assert "grader" in scorer.name


def test_scoring_by_a_judge_needs_one(storage):
    with pytest.raises(UserError, match=r"evaluate\.judge\.model"):
        scorer_of(load_settings(overrides=["prefer.scorer=judge"], environ={}), storage)
