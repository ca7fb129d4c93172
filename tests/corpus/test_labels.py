"""Labels in free text."""

import json
from itertools import permutations
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.corpus.labels import findings, findings_by_recording, label_match, status
from stetholm.corpus.ontology import normalise, ontology
from stetholm.corpus.templates import WORDINGS, Case, comparison, response
from stetholm.settings import Task

SITES = {"heart": "mitral area", "lung": "posterior left chest"}
CASES = [Case(kind, name, SITES[kind]) for kind, conditions in WORDINGS.items() for name in conditions]
TASKS = [task for task in get_args(Task) if task != "Comparison"]


def specific(text: str) -> set[str]:
    """The most specific findings and diagnoses that a text asserts."""
    found = findings(text)
    return {name for kind in ("finding", "diagnosis", "status") for name in ontology().leaves(found, kind)}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.condition)
def test_every_template_answer_matches_itself(task, case):
    assert label_match(task, response(task, case), response(task, case)) is True


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", list(WORDINGS))
def test_answers_about_different_conditions_match_only_where_the_label_is_the_same(task, kind):
    for one, other in permutations([case for case in CASES if case.kind == kind], 2):
        same = task == "Classification" and one.status == other.status
        assert label_match(task, response(task, one), response(task, other)) is same


@pytest.mark.parametrize("kind", list(WORDINGS))
def test_comparisons_match_only_if_every_recording_is_labelled_alike(kind):
    cases = [case for case in CASES if case.kind == kind]
    pairs = [(one, other) for one in cases for other in cases]
    reference = comparison(cases[0], cases[1])
    for one, other in pairs:
        expected = (one, other) == (cases[0], cases[1])
        assert label_match("Comparison", comparison(one, other), reference) is expected
    both = comparison(cases[1], cases[1])
    assert label_match("Comparison", both, both) is True
    assert label_match("Comparison", comparison(cases[0], cases[1]), both) is False


@pytest.mark.parametrize("name", ["stethobench_sample.jsonl", "stethobench_heart.jsonl"])
def test_every_answer_of_the_real_samples_holds_a_label_and_matches_itself(recordings: Path, name: str):
    answers = {(row["task"], row["response"]) for row in map(json.loads, (recordings / name).open())}
    assert all(label_match(task, answer, answer) is True for task, answer in answers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No wheeze, but coarse crackles at both bases.", {"coarse crackle", "abnormal"}),
        ("There is no wheeze, and fine crackles are heard.", {"fine crackle", "abnormal"}),
        ("No murmurs, rubs, or gallops are heard.", {"normal"}),
        ("Neither crackles nor wheezes are present.", {"normal"}),
        ("Vesicular breath sounds without crackles or wheezes.", {"normal"}),
        ("Vesicular breath sounds with wheezes.", {"wheeze", "abnormal"}),
        ("S1 and S2 are clear with silent systole.", {"normal"}),
        ("Wheezes are absent; rhonchi are heard.", {"rhonchus", "abnormal"}),
        ("The heart sound is not normal.", {"abnormal"}),
        ("The heart sound is not abnormal.", {"normal"}),
        ("No abnormality except for fine crackles.", {"fine crackle", "abnormal"}),
        ("Is it abnormal? It is normal.", {"normal"}),
        ("Mitral regurgitation is more likely than aortic stenosis.", {"mitral regurgitation", "abnormal"}),
        ("Mitral stenosis is most likely. Tricuspid stenosis could also give a rumble, but is less likely.",
         {"mitral stenosis", "abnormal"}),
        ("Bronchitis is most likely, with asthma less likely.", {"bronchitis"}),
        ("Pneumonia cannot be excluded, but asthma is most likely.", {"asthma"}),
        ("This could be asthma or COPD.", {"asthma", "copd"}),
        ("Normal S1 and S2, with a harsh holosystolic murmur.", {"holosystolic murmur", "abnormal"}),
        ("A mid-systolic click and a late systolic murmur.", {"midsystolic click", "late systolic murmur", "abnormal"}),
        ("AS", {"aortic stenosis", "abnormal"}),
        ("as before", set()),
        ("", set()),
    ],
)  # fmt: skip
def test_findings_know_negation_hedges_and_alternatives(text, expected):
    assert specific(text) == expected


def test_findings_hold_what_a_finding_implies():
    assert findings("A pansystolic murmur.") >= {"holosystolic murmur", "systolic murmur", "murmur", "abnormal"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The lung sounds are normal.", "normal"),
        ("Wheezes.", "abnormal"),
        ("The sound is normal. The sound is abnormal.", None),
        ("I cannot tell.", None),
    ],
)
def test_status(text, expected):
    assert status(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Audio 1 is normal, while audio 2 shows wheezes.",
        "Compared with audio 1, audio 2 has wheezes, whereas audio 1 is normal.",
        "Wheezes are heard in audio 2, but audio 1 is normal.",
        "The first recording is normal. The second recording contains wheezes.",
        "Audio 2 shows wheezes, unlike audio 1. Audio 1 is normal.",
    ],
)
def test_comparisons_are_read_by_recording(text):
    labels = findings_by_recording(text)
    assert "wheeze" in labels[2] and "wheeze" not in labels[1] and "normal" in labels[1]


@pytest.mark.parametrize(
    ("task", "prediction", "reference", "expected"),
    [
        ("Identification", "Fine crackles are heard.", "Crackles.", True),
        ("Identification", "Crackles are heard.", "Fine crackles.", False),
        ("Identification", "Crackles and wheezes.", "Crackles.", False),
        ("Report", "Crackles. The diagnosis is COPD.", "Wheezes. The diagnosis is COPD.", False),
        ("Report", "A murmur, consistent with mitral stenosis.", "A diastolic rumble: mitral stenosis.", True),
        ("Classification", "Mitral regurgitation.", "The heart sound is abnormal.", True),
        ("Classification", "Normal or abnormal.", "The heart sound is abnormal.", False),
        ("Location", "There are wheezes.", "At the posterior left chest: wheezes.", True),
        ("Location", "At the trachea: wheezes.", "At the posterior left chest: wheezes.", False),
        ("Location", "It is loudest at the aortic area.", "It is loudest at the apex.", False),
        ("Identification", "No.", "Yes.", False),
        ("Identification", "Yes, it is.", "Yes.", True),
        ("Report", "anything", "The weather is fine.", None),
    ],
)
def test_label_match(task, prediction, reference, expected):
    assert label_match(task, prediction, reference) is expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_can_be_read_and_never_contradicts_itself(text):
    assert len(normalise(text)) == len(text)
    assert label_match("Report", text, text) in (True, None)


_FINDINGS = sorted(name for name, c in ontology().concepts.items() if c.kind in ("finding", "diagnosis") and c.patterns)


@given(st.lists(st.sampled_from(_FINDINGS), min_size=1, max_size=3, unique=True))
def test_a_negated_list_asserts_none_of_its_members(names):
    assert not set(names) & findings(f"There is no {' or '.join(names)}.")


@given(st.sampled_from(_FINDINGS))
def test_every_concept_is_found_under_its_own_name(name):
    assert name in findings(f"The recording shows {name}.")
