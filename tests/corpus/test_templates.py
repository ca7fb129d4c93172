"""Pairs from labels: parsable, short, and no answer in the question."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stetholm.audio.synth import HEART_CONDITIONS, HEART_SITES, LUNG_CONDITIONS, LUNG_SITES
from stetholm.corpus.templates import INSTRUCTIONS, NORMAL, WORDINGS, Case, comparison, instruction, response

CASES = [
    Case(kind, condition, site)
    for kind, sites in (("heart", HEART_SITES), ("lung", LUNG_SITES))
    for condition in WORDINGS[kind]
    for site in sites
]
SINGLE = [task for task in INSTRUCTIONS if task != "Comparison"]


def test_every_condition_of_the_synthesiser_has_words() -> None:
    assert set(WORDINGS["heart"]) == {NORMAL, *HEART_CONDITIONS}
    assert set(WORDINGS["lung"]) == {NORMAL, *LUNG_CONDITIONS}


@pytest.mark.parametrize("task", SINGLE)
def test_answers_are_short_and_carry_exactly_their_own_labels(task: str) -> None:
    for case in CASES:
        answer = response(task, case)
        assert 4 <= len(answer.split()) <= 30, answer
        others = [w for name, w in WORDINGS[case.kind].items() if name != case.condition]
        assert not any(w.diagnosis in answer.lower() for w in others), answer
        assert not any(w.finding in answer for w in others), answer
        mine = case.wording
        assert task == "Classification" or mine.finding in answer or mine.diagnosis in answer.lower()


def test_normal_and_abnormal_can_be_parsed() -> None:
    for case in CASES:
        status = "normal" if case.condition == NORMAL else "abnormal"
        assert response("Classification", case) == f"The {case.kind} sound is {status}."
        assert response("Report", case).startswith(f"The {case.kind} sound is {status}, with ")


@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_questions_do_not_tell_the_condition(task: str) -> None:
    for case in CASES:
        healthy = Case(case.kind, NORMAL, case.site)
        for seed in range(4):
            asked = instruction(task, case, np.random.default_rng(seed))
            assert asked == instruction(task, healthy, np.random.default_rng(seed))
            assert "{" not in asked
            assert task != "Location" or case.site in asked


def test_comparison_names_both_in_order() -> None:
    for one, two in itertools.permutations([Case("heart", c, "mitral area") for c in WORDINGS["heart"]], 2):
        assert (
            comparison(one, two)
            == f"Audio 1 shows {one.wording.diagnosis}, while audio 2 shows {two.wording.diagnosis}."
        )
    assert "no major difference" in comparison(CASES[0], CASES[1])


def test_unknown_task_is_an_error() -> None:
    with pytest.raises(KeyError):
        response("Comparison", CASES[0])
