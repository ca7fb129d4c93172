import pytest

from stetholm.model.prompts import CARDIOPULMONARY, HEART, RESPIRATORY, domain_sentence


@pytest.mark.parametrize("dataset", ["heart-zch", "heart-circor", "cinc", "BMD-HS"])
def test_heart_datasets(dataset: str) -> None:
    assert domain_sentence(dataset, "Are there wheezes in the lungs?") == HEART


@pytest.mark.parametrize(
    ("dataset", "sentence"), [("kauh", CARDIOPULMONARY), ("safety", ""), ("icbhi", RESPIRATORY), ("TR", RESPIRATORY)]
)
def test_other_datasets(dataset: str, sentence: str) -> None:
    assert domain_sentence(dataset, "Is this heart sound normal?") == sentence


@pytest.mark.parametrize(
    ("instruction", "sentence"),
    [
        ("Is this heart sound normal?", HEART),
        ("Describe the systolic murmur.", HEART),
        ("Is there a cough?", RESPIRATORY),
        ("Any crackles while breathing?", RESPIRATORY),
        ("Compare the heart and lung sounds.", CARDIOPULMONARY),
        ("What do you hear?", CARDIOPULMONARY),
    ],
)
def test_without_a_dataset_the_words_decide(instruction: str, sentence: str) -> None:
    assert domain_sentence(None, instruction) == sentence
