"""How candidates are sampled and which pair they make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.evaluation.examples import Example
from stetholm.preference.candidates import Scored, gather, question, samplings
from stetholm.settings import PreferSettings

EXAMPLE = Example("s", ("r",), "What?", "A murmur.", "Report", "d")


@given(st.integers(2, 12), st.lists(st.floats(0.1, 2.0), min_size=1, max_size=6))
def test_temperatures_are_taken_in_turn_and_seeds_differ(count, temperatures):
    drawn = samplings(PreferSettings(candidates=count, temperatures=temperatures), 0, "sample")
    assert [one.temperature for one in drawn] == [temperatures[index % len(temperatures)] for index in range(count)]
    assert len({one.seed for one in drawn}) == count
    assert all(one.seed is not None and 0 <= one.seed < 2**31 for one in drawn)


def test_sampling_depends_on_the_runs_seed_and_the_sample():
    settings = PreferSettings()
    assert question(EXAMPLE, settings, 1) == question(EXAMPLE, settings, 1)
    assert samplings(settings, 1, "a") != samplings(settings, 2, "a") != samplings(settings, 2, "b")


@given(st.lists(st.tuples(st.text(max_size=3), st.floats(0, 1)), min_size=2, max_size=6))
def test_chosen_scores_above_rejected_or_there_is_no_pair(drawn):
    scores = dict(drawn)  # the same text has the same score
    texts = [text for text, _ in drawn]
    pair = Scored(EXAMPLE, tuple(texts), tuple(scores[text] for text in texts)).pair()
    if pair is not None:
        chosen, rejected = pair
        assert chosen and chosen != rejected
        assert scores[chosen] == max(scores.values()) > scores[rejected] == min(scores.values())


@pytest.mark.parametrize(
    ("candidates", "scores"),
    [(("a", "a"), (0.5, 0.5)), (("a", "b"), (0.5, 0.5)), (("a", "b"), (0.5, 0.5 + 1e-9)), (("", "b"), (0.5, 0.1))],
)
def test_ties_and_empty_answers_make_no_pair(candidates, scores):
    assert Scored(EXAMPLE, candidates, scores).pair() is None


def test_scores_are_dealt_to_their_candidates():
    found = gather([EXAMPLE, EXAMPLE], [["a", "b"], ["c"]], [0.1, 0.2, 0.3])
    assert [one.scores for one in found] == [(0.1, 0.2), (0.3,)]


def test_candidates_without_a_score_are_left_out_of_the_pair():
    assert Scored(EXAMPLE, ("a", "b", "c"), (None, 0.2, 0.9)).pair() == ("c", "b")
    assert Scored(EXAMPLE, ("a", "b"), (None, 0.2)).pair() is None
    assert Scored(EXAMPLE, ("a", "b"), (None, None)).pair() is None
