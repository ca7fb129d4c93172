"""Which pairs are planned: none without its labels, and always the same."""

from collections import Counter
from dataclasses import replace
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS
from stetholm.corpus.synthesis.plan import answerable, basis, plan_pairs
from stetholm.settings import SynthesizeSettings, Task
from tests.corpus.synthesis.known import all_pairs, labelled, recording, synthetic

SYNTHETIC = synthetic()


def test_the_embedded_corpus_is_asked_all_seven_tasks():
    assert {planned.task for planned in all_pairs(SYNTHETIC)} == set(get_args(Task))


@given(st.sets(st.sampled_from([STATUS, FINDING, DIAGNOSIS])), st.booleans())
def test_no_pair_without_the_labels_it_needs(names, has_site):
    one = recording(site="trachea" if has_site else None)
    one = replace(one, labels={name: value for name, value in one.labels.items() if name in names})
    asked = set(answerable(one))
    assert ("Classification" in asked) == (STATUS in names)
    assert ("Identification" in asked) == (FINDING in names)
    assert ("Report" in asked) == ({STATUS, FINDING} <= names)
    assert ("Reasoning" in asked) == ({DIAGNOSIS, FINDING} <= names)
    assert ("Location" in asked) == (has_site and FINDING in names)
    assert ("Differential Diagnosis" in asked) == (DIAGNOSIS in names or {STATUS, FINDING} <= names)


def test_comparisons_are_of_two_recordings_of_a_site_or_a_patient_in_one_split():
    known = labelled(SYNTHETIC)
    comparisons = [planned for planned in all_pairs(SYNTHETIC) if planned.task == "Comparison"]
    assert len(comparisons) > 10
    for planned in comparisons:
        one, other = planned.recordings
        assert one.filename != other.filename and one.kind == other.kind and basis(one, other)
        assert one.site == other.site or one.patient == other.patient
        assert known.split(one) == known.split(other) == planned.split
    names = [frozenset(one.filename for one in planned.recordings) for planned in comparisons]
    assert len(set(names)) == len(names)
    differ = sum(one.labels[DIAGNOSIS] != other.labels[DIAGNOSIS] for one, other in (p.recordings for p in comparisons))
    assert differ > len(comparisons) / 2


def test_there_is_no_comparison_without_a_second_recording_or_a_common_label():
    alone = recording()
    assert not [p for p in all_pairs([alone]) if p.task == "Comparison"]
    elsewhere = recording(filename="b.wav", patient="2", site="trachea")
    assert not [p for p in all_pairs([alone, elsewhere]) if p.task == "Comparison"]
    other_label = recording(filename="b.wav", labels={"severity": "mild"})
    assert not [p for p in all_pairs([alone, other_label]) if p.task == "Comparison"]


def test_more_recordings_or_more_pairs_keep_what_was_planned():
    known = labelled(SYNTHETIC)

    def names(**changes):
        return {p.name for p in plan_pairs(known, SynthesizeSettings(comparisons_per_recording=0, **changes), 0)}

    few = names(max_recordings=10, pairs_per_recording=2)
    assert len(few) == 20
    assert few < names(max_recordings=20, pairs_per_recording=2)
    assert few < names(max_recordings=10, pairs_per_recording=4)


def test_only_the_splits_and_tasks_that_are_wanted():
    plan = all_pairs(SYNTHETIC, splits=["val"], tasks=["Report", "Comparison"])
    assert {(planned.split, planned.task) for planned in plan} == {("val", "Report"), ("val", "Comparison")}


def test_tasks_are_dealt_evenly():
    chosen = SynthesizeSettings(pairs_per_recording=2, comparisons_per_recording=0)
    counts = Counter(planned.task for planned in plan_pairs(labelled(synthetic(200)), chosen, 0))
    assert min(counts.values()) > 0.6 * max(counts.values())
