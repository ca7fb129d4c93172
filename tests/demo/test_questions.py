"""Which recordings the demo asks about."""

from typing import Any

from stetholm.demo import questions


def row(
    sample: str, instruction: str, response: str, task: str = "Classification", recordings: int = 1
) -> dict[str, Any]:
    return {
        "sample_id": sample,
        "instruction": instruction,
        "response": response,
        "task": task,
        "dataset": "d",
        "recording_ids": [f"{sample}-{index}" for index in range(recordings)],
    }


NORMAL = row("a", "Is this heart sound normal or abnormal?", "The heart sound is normal, no murmur is heard.")
ABNORMAL = row("b", "Is this heart sound normal or abnormal?", "Abnormal: a systolic murmur.")
LUNG = row("c", "What is the primary sound event?", "Wheezing.")
PAIR = row("d", "Compare Audio 2 to Audio 1.", "Audio 2 has a murmur.", "Comparison", 2)


def test_a_normal_heart_an_abnormal_heart_and_something_else():
    chosen = questions.choose([PAIR, ABNORMAL, LUNG, NORMAL])
    assert [(kind, chosen_row["sample_id"]) for kind, chosen_row in chosen] == [
        ("a normal heart", "a"),
        ("an abnormal heart", "b"),
        ("a comparison, or a lung", "c"),
    ]


def test_what_is_denied_is_not_abnormal():
    assert questions.normal(NORMAL) and not questions.abnormal(NORMAL)
    assert questions.abnormal(ABNORMAL) and not questions.normal(ABNORMAL)


def test_other_rows_stand_in_and_none_is_asked_twice():
    chosen = questions.choose([LUNG, PAIR, row("e", "Where?", "Left.")])
    assert sorted(chosen_row["sample_id"] for _, chosen_row in chosen) == ["c", "d", "e"]
    assert len(questions.choose([LUNG])) == 1
    assert questions.choose([]) == []


def test_a_request_holds_the_sounds_and_the_question():
    question = questions.Question("k", "What is heard?", "x", (b"one", b"two"), "Comparison", "d")
    (message,) = questions.body(question, "stetholm")["messages"]
    assert [part["type"] for part in message["content"]] == ["input_audio", "input_audio", "text"]
    assert message["content"][-1]["text"] == "What is heard?"
