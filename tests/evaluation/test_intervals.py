"""Intervals of many columns against the plain bootstrap, paired differences, and the classes that are named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.evaluation.bootstrap import bootstrap, mean_of
from stetholm.evaluation.classes import class_of, class_tables
from stetholm.evaluation.conditions import AUDIO, WITHHELD
from stetholm.evaluation.examples import Example
from stetholm.evaluation.intervals import Resampled, number, patient_cluster
from stetholm.evaluation.scoring import Draws, score

values = st.lists(
    st.tuples(st.sampled_from("abcde"), st.one_of(st.none(), st.floats(0, 1, width=32))), min_size=1, max_size=40
)


@settings(max_examples=40)
@given(values)
def test_a_column_is_the_plain_bootstrap_of_its_mean(rows):
    clusters, column = zip(*rows, strict=True)
    column = np.array([number(one) for one in column])
    ours = Resampled(column[:, None], clusters, 200, 3).column(0)
    theirs = bootstrap(mean_of(column), clusters, 200, 3)
    assert (ours.value is None) == (theirs.value is None)
    for a, b in ((ours.value, theirs.value), (ours.low, theirs.low), (ours.high, theirs.high)):
        assert (a is None) == (b is None) or np.isnan(b)
        assert a is None or a == pytest.approx(b, abs=1e-9)


def test_the_interval_holds_the_mean_and_narrows_with_more_patients():
    rng = np.random.default_rng(0)
    widths = []
    for patients in (20, 500):
        clusters = [f"p{index // 4}" for index in range(4 * patients)]
        # Four answers of a patient are alike, as recordings of one patient are.
        column = np.repeat(rng.random(patients) < 0.7, 4).astype(float)
        found = Resampled(column[:, None], clusters, 1000, 0).column(0)
        alone = Resampled(column[:, None], [str(index) for index in range(len(column))], 1000, 0).column(0)
        assert found.low <= column.mean() <= found.high
        assert found.high - found.low > 1.5 * (alone.high - alone.low)
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3


def test_a_paired_difference_is_narrower_than_that_of_two_strangers():
    rng = np.random.default_rng(1)
    theirs = rng.random(200)
    ours = theirs + 0.05 + rng.normal(0, 0.01, 200)
    found = Resampled(np.c_[ours, theirs], [str(i) for i in range(200)], 1000, 0)
    difference = found.estimate(lambda means: means[..., 0] - means[..., 1])
    assert 0.04 < difference.low < 0.05 < difference.high < 0.06
    assert difference.high < found.column(1).high - found.column(1).low


def test_one_patient_gives_no_interval():
    found = Resampled([[1.0], [0.0]], ["a", "a"], 100, 0).column(0)
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_a_comparison_belongs_to_its_first_patient():
    assert patient_cluster("d", "p1+p2", ["r"]) == patient_cluster("d", "p1", ["s"])
    assert patient_cluster("d", "", ["r"]) == "d/r"


@pytest.mark.parametrize(
    ("text", "kind", "named"),
    [
        ("Mitral regurgitation. The recording shows a holosystolic murmur.", "diagnosis", "mitral regurgitation"),
        ("Mitral stenosis is most likely. Tricuspid stenosis could also give it, but is less likely.", "diagnosis",
         "mitral stenosis"),
        ("Normal heart sounds.", "diagnosis", "normal"),
        ("The heart sound is abnormal.", "diagnosis", None),
        ("There is aortic stenosis and mitral regurgitation.", "diagnosis", "aortic stenosis + mitral regurgitation"),
        ("Crackles are heard.", "finding", "crackle"),
        ("No wheezes and no crackles.", "finding", "normal"),
    ],
)  # fmt: skip
def test_the_class_that_a_text_names(text, kind, named):
    assert class_of(text, kind) == named


def diagnosis(index: int, name: str, task: str = "Reasoning") -> Example:
    return Example(f"s{index}-{task}", (f"r{index}",), "Why?", f"{name}.", task, "heart-x", patient=f"p{index}")


def overlap(predictions, references):
    return [0.0] * len(predictions)


def test_accuracy_of_the_class_named_counts_tasks_that_name_classes_alone():
    names = ["Mitral stenosis", "Mitral regurgitation", "Normal heart sounds", "Aortic stenosis"] * 5
    examples = [diagnosis(i, name) for i, name in enumerate(names)]
    examples += [diagnosis(i, "The heart sound is abnormal", "Classification") for i in range(20)]
    right = [one.response for one in examples]
    right[0] = "Perhaps."
    predictions = {AUDIO: right, WITHHELD: ["Mitral stenosis."] * 40}
    [table] = class_tables(score(examples, predictions, overlap), [AUDIO, WITHHELD], Draws(200))
    assert (table["dataset"], table["kind"], table["n"]) == ("heart-x", "diagnosis", 20)
    assert set(table["classes"]) == {"mitral stenosis", "mitral regurgitation", "normal", "aortic stenosis"}
    assert table["tasks"].keys() == {"Reasoning"}
    audio, withheld = table["conditions"][AUDIO], table["conditions"][WITHHELD]
    assert audio["accuracy"] == 0.95 and withheld["accuracy"] == table["majority"] == 0.25
    assert withheld["balanced_accuracy"] == 0.25
    assert audio["intervals"]["accuracy"][0] > withheld["intervals"]["accuracy"][1]
    assert ["mitral stenosis", "(none)", 1] in table["confusion"]


def test_a_corpus_that_names_no_class_has_no_table():
    examples = [Example(f"s{i}", (f"r{i}",), "?", "The sound is normal.", "Classification", "d") for i in range(3)]
    assert class_tables(score(examples, {AUDIO: ["normal"] * 3}, overlap), [AUDIO]) == []
