"""Pairs from labels say what the labels say, and nothing more."""

from __future__ import annotations

from stetholm.corpus.labelled import answers, labelled_pairs
from stetholm.corpus.recording import Recording

ABNORMAL = Recording(
    "a.wav", "icbhi", "lung", "101", "CC0-1.0", site="trachea", device="Meditron",
    labels={"status": "abnormal", "finding": "wheezes", "diagnosis": "asthma"}, distribution="OOD",
)  # fmt: skip


def test_every_label_is_asked_for() -> None:
    assert answers(ABNORMAL) == {
        "Classification": "The lung sound is abnormal.",
        "Identification": "The main finding is wheezes.",
        "Report": "The lung sound is abnormal, with wheezes. The diagnosis is asthma.",
        "Reasoning": "Asthma. The recording shows wheezes.",
        "Location": "At the trachea: wheezes.",
    }


def test_what_is_not_known_is_not_said() -> None:
    def of(**labels: str) -> dict[str, str]:
        return dict(answers(Recording("b.wav", "cinc", "heart", "b", "", labels=labels)))

    assert of() == of(severity="4") == {}
    assert of(status="normal") == {"Classification": "The heart sound is normal."}
    assert of(diagnosis="COVID-19") == {"Reasoning": "COVID-19."}


def test_pairs_carry_what_is_known_of_the_recording() -> None:
    entries = list(labelled_pairs([ABNORMAL], {("icbhi", "101"): "val"}, seed=3))
    assert [(entry.source, entry.line) for entry in entries] == [("a.wav", number) for number in range(1, 6)]
    for entry in entries:
        pair = entry.pair
        assert (pair.filenames, pair.split, pair.distribution) == (("a.wav",), "val", "OOD")
        assert (pair.dataset, pair.patient, pair.site, pair.device) == ("icbhi", "101", "trachea", "Meditron")
    location = next(entry.pair for entry in entries if entry.pair.task == "Location")
    assert "trachea" in location.instruction
    assert entries == list(labelled_pairs([ABNORMAL], {("icbhi", "101"): "val"}, seed=3))


def test_wording_varies_by_recording_and_seed_alone() -> None:
    many = [Recording(f"{number}.wav", "kauh", "lung", "p", "", labels={"finding": "wheezes"}) for number in range(30)]
    splits = {("kauh", "p"): "train"}
    asked = [entry.pair.instruction for entry in labelled_pairs(many, splits, seed=0)]
    assert len(set(asked)) > 1
    assert asked[::-1] == [entry.pair.instruction for entry in labelled_pairs(many[::-1], splits, seed=0)]
