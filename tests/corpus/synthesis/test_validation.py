"""What is kept of a writer's answers, and by which rule the rest is not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS
from stetholm.corpus.synthesis.plan import Planned
from stetholm.corpus.synthesis.template_writer import write
from stetholm.corpus.synthesis.validation import Draft, Fault, validate
from tests.corpus.synthesis.known import all_pairs, answer, icbhi, labelled, recording, synthetic

SICK = recording()
WELL = recording(
    filename="b.wav", labels={STATUS: "normal", FINDING: "no added sounds", DIAGNOSIS: "no lung disease"}
)  # fmt: skip
HEART = recording(
    filename="h.wav", kind="heart", site="mitral area",
    labels={STATUS: "normal", FINDING: "clear S1 and S2 with silent intervals", DIAGNOSIS: "normal heart sounds"},
)  # fmt: skip
GRADED = recording(filename="g.wav", kind="heart", site=None,
                   labels={STATUS: "abnormal", FINDING: "a systolic murmur", "severity": "grade 2/6"})  # fmt: skip
ASTHMA = recording(filename="c.wav", labels={STATUS: "abnormal", FINDING: "wheezes", DIAGNOSIS: "asthma"})
QUESTION = {
    "Classification": "Is this lung sound normal or abnormal?",
    "Identification": "What is the main finding?",
    "Report": "Write a short report of this sound.",
    "Reasoning": "What is the most likely diagnosis, and why?",
    "Differential Diagnosis": "Which diagnoses should be considered?",
    "Location": "What does the recording from the posterior left chest show?",
    "Comparison": "Compare audio 2 with audio 1. What is the major difference?",
}


def check(task, response, *recordings, question=None):
    found = validate(Planned(task, recordings or (SICK,), "train"), answer(question or QUESTION[task], response))
    return None if isinstance(found, Draft) else (found.rule, found.reason)


@pytest.mark.parametrize(
    ("task", "response", "recordings"),
    [
        ("Classification", "The lung sound is abnormal.", (SICK,)),
        ("Classification", "Normal: no wheezes or crackles are heard.", (WELL,)),
        ("Identification", "Fine crackles are heard late in inspiration.", (SICK,)),
        ("Identification", "No adventitious sounds are heard.", (WELL,)),
        ("Report", "Abnormal breath sounds with fine crackles, without wheezes. The picture is consistent with "
                   "pulmonary fibrosis.", (SICK,)),
        ("Report", "Normal vesicular breath sounds without crackles or wheezes.", (WELL,)),
        ("Reasoning", "Interstitial lung disease is most likely, because fine crackles are heard.", (SICK,)),
        ("Differential Diagnosis", "Pulmonary fibrosis is most likely; heart failure is less likely.", (SICK,)),
        ("Differential Diagnosis", "The sound is normal; asthma and pneumonia are unlikely.", (WELL,)),
        ("Location", "At the posterior left chest there are fine crackles.", (SICK,)),
        ("Comparison", "Audio 1 has fine crackles, while audio 2 is normal.", (SICK, WELL)),
        ("Comparison", "Audio 1 shows pulmonary fibrosis, whereas audio 2 shows asthma.", (SICK, ASTHMA)),
        ("Comparison", "There is no major difference: both recordings show fine crackles.", (SICK, SICK)),
        ("Comparison", "Recordings 1 and 2 are abnormal: audio 1 has fine crackles, audio 2 wheezes.", (SICK, ASTHMA)),
        ("Differential Diagnosis", "1. Pulmonary fibrosis is most likely. 2. Pneumonia is less likely.", (SICK,)),
        ("Differential Diagnosis", "Pulmonary fibrosis is most likely; pneumonia, tuberculosis or COVID-19 cannot be "
                                   "excluded.", (SICK,)),
        ("Location", "At the posterior left chest, over the left lower lobe, there are fine crackles.", (SICK,)),
        ("Location", "At the posterior left chest, and not over the right lung, there are fine crackles.", (SICK,)),
        ("Report", "The sound is abnormal, with a grade 2/6 systolic murmur after S1.", (GRADED,)),
    ],
)  # fmt: skip
def test_good_answers_are_kept(task, response, recordings):
    assert check(task, response, *recordings) is None


@pytest.mark.parametrize(
    ("task", "response", "recordings", "rule", "reason"),
    [
        ("Classification", "The lung sound is normal.", (SICK,), "labels", "it is abnormal"),
        ("Classification", "It could be anything.", (SICK,), "task", "neither normal nor abnormal"),
        ("Identification", "No crackles are heard.", (SICK,), "labels", "denies fine crackle"),
        ("Identification", "Coarse crackles are heard.", (SICK,), "labels", "claims coarse crackle"),
        ("Identification", "Fine crackles and wheezes are heard.", (SICK,), "labels", "claims wheeze"),
        ("Identification", "Crackles are heard.", (SICK,), "task", "does not name fine crackle"),
        ("Identification", "Wheezes are heard.", (WELL,), "labels", "the sound is abnormal, but it is normal"),
        ("Report", "Fine crackles suggest pneumonia.", (SICK,), "labels", "claims pneumonia"),
        ("Report", "The breath sounds are abnormal.", (SICK,), "task", "does not name fine crackle"),
        ("Report", "The sound is normal. Fine crackles are heard.", (SICK,), "labels", "both normal and abnormal"),
        ("Reasoning", "Pulmonary fibrosis.", (SICK,), "task", "no reason"),
        ("Reasoning", "It is asthma, because wheezes are absent.", (SICK,), "labels", "claims asthma"),
        ("Reasoning", "Pulmonary fibrosis is ruled out, because it is so.", (SICK,), "labels", "denies pulmonary fib"),
        ("Differential Diagnosis", "Pulmonary fibrosis is most likely.", (SICK,), "task", "fewer than 2"),
        ("Differential Diagnosis", "It may be asthma or pneumonia.", (SICK,), "task", "not name pulmonary fibrosis"),
        ("Location", "There are fine crackles.", (SICK,), "task", "answer does not name the posterior left"),
        ("Location", "At the posterior left chest, and not at the trachea, it is quiet.", (SICK,), "task", "fine"),
        ("Location", "At the posterior left chest and the trachea fine crackles.", (SICK,), "labels", "trachea"),
        ("Comparison", "Audio 2 is normal.", (SICK, WELL), "task", "what audio 1 shows"),
        ("Comparison", "Audio 1 is normal, while audio 2 has fine crackles.", (SICK, WELL), "labels", "of audio 1"),
        ("Report", "Audio 2 has fine crackles and is abnormal.", (SICK,), "task", "another recording"),
        ("Report", "Normal: S1 and S2 are clear. Mitral stenosis may also be present.", (HEART,), "labels",
         "claims mitral stenosis"),
        ("Report", "The sound is normal, and a murmur cannot be ruled out.", (HEART,), "labels", "claims murmur"),
        ("Differential Diagnosis", "Normal heart sounds are most likely. A murmur cannot be excluded, and aortic "
                                   "stenosis is unlikely.", (HEART,), "labels", "claims murmur"),
        ("Report", "Abnormal, with fine crackles. Coarse crackles may also be present.", (SICK,), "labels",
         "claims coarse crackle"),
        ("Reasoning", "Pulmonary fibrosis, because of fine crackles; tuberculosis cannot be excluded.", (SICK,),
         "labels", "claims tuberculosis"),
        ("Location", "At the posterior left chest, over the right lower lobe: fine crackles.", (SICK,), "labels",
         "another place, right side"),
        ("Report", "Abnormal, with fine crackles in the right lung.", (SICK,), "labels", "another place, right side"),
        ("Report", "Abnormal, with fine crackles, perhaps in the middle lobe.", (SICK,), "labels", "right side"),
        ("Report", "Abnormal, with fine crackles at both lung bases.", (SICK,), "labels", "another place, both sides"),
        ("Report", "Normal heart sounds at 130 bpm in a 67-year-old man who smokes.", (HEART,), "labels", "facts say"),
        ("Report", "Normal heart sounds at 130 beats.", (HEART,), "labels", "tells '130'"),
        ("Report", "Normal heart sounds in a man.", (HEART,), "labels", "tells 'man'"),
        ("Report", "Normal heart sounds of an elderly patient.", (HEART,), "labels", "tells 'elderly'"),
        ("Report", "Abnormal, with a grade 4/6 systolic murmur.", (GRADED,), "labels", "tells '4/6'"),
        ("Report", "Abnormal, with a grade IV systolic murmur.", (GRADED,), "labels", "tells 'grade iv'"),
        ("Report", "Abnormal, with a systolic murmur radiating to the carotids.", (GRADED,), "labels", "radiating"),
        ("Report", "Abnormal, with a systolic murmur and a pericardial knock.", (GRADED,), "labels", "pericardial kn"),
        ("Report", "Abnormal, with a systolic murmur in atrial fibrillation.", (GRADED,), "labels", "atrial fibril"),
        ("Report", "Abnormal, with fine crackles and a pneumothorax.", (SICK,), "labels", "pneumothorax"),
        ("Report", "According to the labels, fine crackles are abnormal.", (SICK,), "text", "labels"),
        ("Report", "<the answer>", (SICK,), "text", "<"),
        ("Report", "x" * 2000, (SICK,), "text", "2000 characters"),
    ],
)  # fmt: skip
def test_bad_answers_are_told_apart_and_explained(task, response, recordings, rule, reason):
    found = check(task, response, *recordings)
    assert found is not None and found[0] == rule and reason in found[1]


@pytest.mark.parametrize(
    ("task", "question", "rule"),
    [
        ("Identification", "What do these fine crackles mean?", "leak"),
        ("Identification", "Are there crackles?", "leak"),
        ("Identification", "Are crackles or wheezes heard?", None),
        ("Identification", "Which adventitious sounds are there?", None),
        ("Identification", "Why is this abnormal sound heard?", "leak"),
        ("Reasoning", "Why is this pulmonary fibrosis?", "leak"),
        ("Classification", "Classify this lung sound, please.", "task"),
        ("Location", "What is heard at this place?", "task"),
        ("Comparison", "What is the difference?", "task"),
        ("Identification", "What is heard in this 67-year-old patient?", "labels"),
        ("Comparison", "Which of the two recordings is normal or abnormal?", None),
    ],
)
def test_questions_give_nothing_away_and_fit_their_task(task, question, rule):
    responses = {
        "Classification": "Abnormal.", "Reasoning": "Pulmonary fibrosis, because fine crackles are heard.",
        "Location": "Fine crackles at the posterior left chest.",
        "Comparison": "Audio 1 is abnormal, audio 2 is normal.",
    }  # fmt: skip
    recordings = (SICK, WELL) if task == "Comparison" else (SICK,)
    found = check(task, responses.get(task, "Fine crackles."), *recordings, question=question)
    assert (found and found[0]) == rule


@pytest.mark.parametrize(
    "text",
    ["", "Sure! Here is it.", "[]", "{}", '{"instruction": "What?"}', '{"instruction": 1, "response": 2}', "[" * 9999,
     '{"instruction": "What is it?", "response": " "}', '{"instruction": "a", "response": "b"} and more'],
)  # fmt: skip
def test_what_is_not_the_json_that_was_asked_for_is_rejected(text):
    found = validate(Planned("Report", (SICK,), "train"), text)
    assert isinstance(found, Fault) and found.rule == "form"


def test_a_markdown_fence_around_the_json_is_no_fault():
    text = f"```json\n{answer(QUESTION['Classification'], 'Abnormal.')}\n```"
    assert isinstance(validate(Planned("Classification", (SICK,), "train"), text), Draft)


@given(st.text(max_size=200), st.sampled_from(sorted(QUESTION)))
def test_any_text_can_be_judged(text, task):
    pair = Planned(task, (SICK, WELL) if task == "Comparison" else (SICK,), "train")
    for raw in (text, json.dumps({"instruction": text, "response": text})):
        assert isinstance(validate(pair, raw), Draft | Fault)


def test_a_label_that_the_ontology_does_not_know_is_looked_for_by_its_words():
    sneezing = recording(kind="cough", labels={FINDING: "sneezes and throat clearing"})
    assert check("Identification", "Sneezes and throat clearing are heard.", sneezing) is None
    assert check("Identification", "Something is heard.", sneezing) == (
        "task",
        "the answer does not name sneezes and throat clearing",
    )
    leak = check(
        "Identification", "Sneezes and throat clearing.", sneezing, question="Where are sneezes and throat clearing?"
    )
    assert leak is not None and leak[0] == "leak"


def test_every_template_pair_of_the_embedded_corpus_is_valid():
    for planned in all_pairs(synthetic(60)):
        assert isinstance(validate(planned, write(planned, 0)), Draft), write(planned, 0)


LABELS = {
    "lung": [
        {STATUS: "abnormal", FINDING: "crackles and wheezes", DIAGNOSIS: "COPD"},
        {STATUS: "normal", FINDING: "no added sounds", DIAGNOSIS: "no lung disease"},
        {STATUS: "normal", FINDING: "no added sounds", DIAGNOSIS: "URTI"},
        {STATUS: "abnormal", FINDING: "continuous added sounds and crackles"},
        {STATUS: "abnormal", FINDING: "rhonchi and stridor"},
        {STATUS: "abnormal", FINDING: "bronchial breathing", DIAGNOSIS: "lung fibrosis"},
        {DIAGNOSIS: "COPD"},
        {STATUS: "abnormal"},
    ],
    "heart": [
        {STATUS: "abnormal", FINDING: "a systolic murmur"},
        {STATUS: "abnormal", FINDING: "a murmur"},
        {STATUS: "normal", FINDING: "clear S1 and S2 with silent intervals"},
        {STATUS: "abnormal", DIAGNOSIS: "aortic stenosis, mitral regurgitation and mitral stenosis"},
        {STATUS: "abnormal", DIAGNOSIS: "ventricular septal defect"},
        {STATUS: "normal", DIAGNOSIS: "no heart disease"},
        {DIAGNOSIS: "patent foramen ovale"},
    ],
    "cough": [
        {FINDING: "coughs"},
        {FINDING: "a dry cough", STATUS: "abnormal", DIAGNOSIS: "lower respiratory tract infection"},
    ],
    "breath": [{FINDING: "shallow breathing", DIAGNOSIS: "respiratory disease other than COVID-19"}],
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
def test_every_template_pair_of_published_labels_is_valid(kind):
    known = [
        recording(filename=f"{number}.wav", dataset=kind, kind=kind, site=site, labels=labels)
        for number, labels in enumerate(LABELS[kind])
        for site in ("mitral area" if kind == "heart" else "posterior left chest",)
    ]
    plan = all_pairs(known)
    assert len(plan) > 3
    for planned in plan:
        found = validate(planned, write(planned, 0))
        assert isinstance(found, Draft), (planned.name, found, write(planned, 0))


def test_a_reader_of_a_dataset_gives_labels_that_templates_answer(tmp_path):
    from stetholm.corpus.folder import LocalFolder
    from stetholm.corpus.sources import icbhi as reader

    icbhi(tmp_path, 12)
    plan = all_pairs(list(reader.read(LocalFolder(str(tmp_path / "icbhi")))))
    assert len(labelled([p.recordings[0] for p in plan]).recordings) > 12
    assert all(isinstance(validate(planned, write(planned, 0)), Draft) for planned in plan)
