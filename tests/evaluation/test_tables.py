"""Choice of examples, control conditions, figures, the table and the gate."""

import io
from collections import Counter

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stetholm.evaluation.conditions import ASKED, AUDIO, SHUFFLED, WITHHELD, derangement, question
from stetholm.evaluation.examples import Example, choose
from stetholm.evaluation.generation import Question
from stetholm.evaluation.scoring import binary, cells, figures, grouped, score, to_table
from stetholm.evaluation.table import WIDTH, header, print_table, rows, to_markdown
from stetholm.evaluation.verdicts import Verdict
from stetholm.serving.engine import Sampling

TASKS = ("Classification", "Report", "Differential Diagnosis")


def example(index: int, task: str = "Classification", dataset: str = "d", recordings: tuple[str, ...] = ()) -> Example:
    response = "The heart sound is abnormal." if index % 2 else "The heart sound is normal."
    return Example(f"s{index}", recordings or (f"r{index}",), "Normal?", response, task, dataset)


def word_overlap(predictions, references):
    """A scorer that needs no model."""
    return [float(p == r) for p, r in zip(predictions, references, strict=True)]


word_overlap.name = "overlap"  # type: ignore[attr-defined]


sizes = st.dictionaries(st.sampled_from(TASKS), st.integers(1, 30), min_size=1)


@hypothesis.example({"Classification": 1, "Report": 1, "Differential Diagnosis": 4}, 3, 0)
@given(sizes, st.integers(1, 100), st.integers(0, 5))
def test_choice_is_seeded_in_proportion_and_of_the_size_asked_for(counts, wanted, seed):
    examples = [example(1000 * place + i, task) for place, task in enumerate(counts) for i in range(counts[task])]
    chosen = choose(examples, wanted, seed)
    total = sum(counts.values())
    assert len(chosen) == min(wanted, total)
    assert set(chosen) == set(choose(examples[::-1], wanted, seed))
    taken = Counter(one.task for one in chosen)
    assert all(abs(taken[task] - size * min(wanted, total) / total) <= len(counts) for task, size in counts.items())
    assert wanted < len(counts) or set(taken) == set(counts)


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from("ab")), min_size=1, max_size=30), st.integers(0, 9))
def test_every_recording_is_exchanged_for_another_of_its_dataset(places, seed):
    examples = [example(i, dataset=d, recordings=(f"{d}{n}",)) for i, (n, d) in enumerate(places)]
    exchanged = derangement(examples, seed)
    assert exchanged == derangement(examples[::-1], seed)
    names = {name for one in examples for name in one.recording_ids}
    assert all(old != new for old, new in exchanged.items())
    assert sorted(exchanged) == sorted(exchanged.values()) == (sorted(names) if len(names) > 1 else [])
    sizes = Counter(name[0] for name in names)
    if min(sizes.values()) > 1:
        assert all(old[0] == new[0] for old, new in exchanged.items())


def test_questions_of_the_conditions_differ_in_their_recordings_alone():
    one = example(0, recordings=("a", "b"))
    asked = {name: question(one, name, {"a": "b", "b": "a"}, Sampling()) for name in ASKED}
    assert asked[AUDIO].recordings == ("a", "b")
    assert asked[WITHHELD].recordings == ()
    assert asked[SHUFFLED].recordings == ("b", "a")
    assert len({(q.instruction, q.dataset, q.samplings) for q in asked.values()}) == 1
    assert question(one, SHUFFLED, {}, Sampling()) is None


@given(st.text(), st.lists(st.text(), max_size=2), st.floats(0, 2), st.lists(st.text(min_size=1), max_size=2))
def test_a_question_survives_json_and_its_key_tells_it_apart(text, recordings, temperature, stop):
    one = Question(text, None, tuple(recordings), (Sampling(temperature=temperature, stop=tuple(stop)),))
    assert Question.from_json(one.to_json()) == one
    assert one.key != Question(text + " ", None, one.recordings, one.samplings).key


@pytest.fixture
def scored():
    examples = [example(i, TASKS[i % 2]) for i in range(4)]
    right = [one.response for one in examples]
    predictions = {AUDIO: right, WITHHELD: ["The heart sound is normal."] * 4, SHUFFLED: [*right[:3], None]}
    return score(examples, predictions, word_overlap)


@pytest.fixture
def report(scored):
    return {
        "checkpoint": "s3://b/c", "split": "test", "examples": 4, "split_rows": 9, "scorer": "overlap",
        "overall": figures(scored, ASKED), "tasks": grouped(scored, lambda one: one.task, ASKED),
        "binary": binary(scored, ASKED),
    }  # fmt: skip


def test_figures_count_what_was_asked(scored):
    found = figures(scored, ASKED)
    assert {key: found[AUDIO][key] for key in ("n", "bertscore_f1", "rouge1", "label_accuracy", "labelled")} == {
        "n": 4, "bertscore_f1": 1.0, "rouge1": 1.0, "label_accuracy": 1.0, "labelled": 4
    }  # fmt: skip
    assert found[AUDIO]["clinical_accuracy"] is None and found[AUDIO]["judged"] == found[AUDIO]["unjudged"] == 0
    assert found[AUDIO]["intervals"]["label_accuracy"] == [1.0, 1.0]
    assert found[WITHHELD]["label_accuracy"] == 0.5
    low, high = found[WITHHELD]["intervals"]["label_accuracy"]
    assert 0 <= low < 0.5 < high <= 1
    assert found[SHUFFLED]["n"] == 3
    assert figures([], [AUDIO])[AUDIO]["label_accuracy"] is None


def test_verdicts_are_counted_with_those_that_are_none():
    verdicts = [Verdict(True, 1.0), Verdict(False, 0.2), Verdict(None, None, "no JSON")]
    scored = score([example(i) for i in range(3)], {AUDIO: ["normal"] * 3}, word_overlap)
    for one, verdict in zip(scored, verdicts, strict=True):
        one.verdicts[AUDIO] = verdict
    found = figures(scored, [AUDIO])[AUDIO]
    assert (found["clinical_accuracy"], found["judged"], found["unjudged"]) == (0.5, 2, 1)
    assert to_table(scored, [AUDIO])["judge_reason"].to_pylist()[2] == "no JSON"


def test_cells_are_by_task_dataset_and_distribution():
    examples = [example(i, TASKS[i % 2], "ab"[i // 4]) for i in range(8)]
    found = cells(score(examples, {AUDIO: ["normal"] * 8}, word_overlap), [AUDIO])
    assert [(one["task"], one["dataset"], one["conditions"][AUDIO]["n"]) for one in found] == [
        ("Classification", "a", 2), ("Classification", "b", 2), ("Report", "a", 2), ("Report", "b", 2)
    ]  # fmt: skip


def test_balanced_accuracy_unmasks_a_constant_answer():
    examples = [example(1) for _ in range(3)] + [example(2)]
    figures = binary(score(examples, {AUDIO: ["abnormal"] * 4}, word_overlap), [AUDIO])
    assert figures["majority"] == figures[AUDIO]["accuracy"] == 0.75
    assert figures[AUDIO]["balanced_accuracy"] == 0.5


def test_binary_counts_classification_alone(report):
    assert report["binary"]["n"] == 2
    assert set(report["tasks"]) == {"Classification", "Report"}


def test_the_parquet_table_has_a_row_an_example_and_the_columns_of_each_condition(scored):
    table = to_table(scored, ASKED)
    assert table.num_rows == 4
    names = {"sample_id", "task", "instruction", "reference", "prediction", "label_match",
             "prediction_withheld", "prediction_shuffled", "label_match_shuffled"}  # fmt: skip
    assert names <= set(table.column_names)
    assert table["prediction_shuffled"].to_pylist()[3] is None


def test_the_table_has_tasks_overall_controls_and_binary(report):
    names = [row[0] for row in rows(report)]
    assert names[:3] == ["Classification", "Report", "Overall"]
    assert "Overall, audio withheld" in names and "Normal or abnormal" in names
    assert {len(row) for row in rows(report)} == {len(header(report))}


def test_the_table_is_printed_within_its_width_and_names_the_backbone(report):
    stream = io.StringIO()
    print_table({**report, "checkpoint": "s3://bucket/" + "x" * 150}, Console(file=stream))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert any("withheld" in line and "shuffled" in line for line in lines)  # not cut at 80 columns
    assert "overlap" in stream.getvalue() and "overlap" in to_markdown(report)


def test_a_table_without_controls_has_none(scored):
    report = {
        "checkpoint": "c", "split": "test", "examples": 4, "split_rows": 4, "scorer": "overlap",
        "overall": figures(scored, [AUDIO]), "tasks": grouped(scored, lambda one: one.task, [AUDIO]),
        "binary": binary(scored, [AUDIO]),
    }  # fmt: skip
    assert not any("withheld" in row[0] for row in rows(report))
