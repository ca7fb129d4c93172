"""ICBHI 2017, in its own naming and annotation format, and on the real files."""

from pathlib import Path

import pytest

from stetholm.corpus.folder import LocalFolder
from stetholm.corpus.recording import Event, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.icbhi import read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish


def test_names_cycles_diagnoses_and_split(tmp_path: Path) -> None:
    folder = publish(
        tmp_path,
        {
            "db/101_1b1_Al_sc_Meditron.wav": "",
            "db/101_1b1_Al_sc_Meditron.txt": "0.036\t0.579\t0\t0\n0.579\t2.45\t1\t1\n",
            "db/226_1b1_Pl_mc_LittC2SE.wav": "",
            "db/226_1b1_Pl_mc_LittC2SE.txt": "0.0 1.5 0 0\r\n",
            "patient_diagnosis.csv": "101,URTI\n226,Healthy\n",
            "ICBHI_challenge_train_test.txt": "101_1b1_Al_sc_Meditron\ttest\n226_1b1_Pl_mc_LittC2SE\ttrain\n",
        },
    )
    first, second = read(folder)
    assert first == Recording(
        "db/101_1b1_Al_sc_Meditron.wav", "icbhi", "lung", "101", "CC0-1.0",
        site="anterior left chest", device="Welch Allyn Meditron",
        labels={"status": "abnormal", "finding": "crackles and wheezes", "diagnosis": "URTI"},
        events=(Event(0.036, 0.579, "no added sounds"), Event(0.579, 2.45, "crackles and wheezes")), split="test",
    )  # fmt: skip
    assert isinstance(second, Recording)
    assert (second.patient, second.split, second.device) == ("226", "train", "Littmann Classic II SE")
    assert second.labels == {"status": "normal", "finding": "no added sounds", "diagnosis": "no lung disease"}


def test_what_makes_no_sense_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = publish(
        tmp_path,
        {
            "101_1b1_Al_sc_Meditron.wav": "",
            "101_1b1_Al_sc_Meditron.txt": "0.0 1.5 yes no\n",
            "102_1b1_Ar_sc_Meditron.wav": "",
            "readme_of_somebody.wav": "",
            "103_2b2_Ar_mc_LittC2SE.wav": "",
            "103_2b2_Ar_mc_LittC2SE.txt": "0.0 1.5 0 1\n",
        },
    )
    rejects = [found for found in read(folder) if isinstance(found, Reject)]
    assert [(reject.source, reject.reason) for reject in rejects] == [
        ("101_1b1_Al_sc_Meditron.txt", "line 1 is not 'start end crackle wheeze': '0.0 1.5 yes no'"),
        ("102_1b1_Ar_sc_Meditron.txt", "is not there, though its recording is"),
        ("readme_of_somebody.wav", "the name is not patient_index_site_mode_device"),
    ]
    assert [found.patient for found in read(folder) if isinstance(found, Recording)] == ["103"]


def test_the_official_table_of_diagnoses_and_times_that_make_no_sense(tmp_path: Path) -> None:
    folder = publish(
        tmp_path,
        {
            "101_1b1_Al_sc_Meditron.wav": "",
            "101_1b1_Al_sc_Meditron.txt": "0.0 1.5 0 0\n",
            "102_1b1_Al_sc_Meditron.wav": "",
            "102_1b1_Al_sc_Meditron.txt": "2.0 1.5 0 0\n",
            "ICBHI_Challenge_diagnosis.txt": "101\tBronchiectasis\n",
        },
    )
    good, bad = read(folder)
    assert isinstance(good, Recording) and good.labels["diagnosis"] == "Bronchiectasis"
    assert isinstance(bad, Reject) and "line 1 is not" in bad.reason


def test_another_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recording below the folder has a name of icbhi"):
        list(read(publish(tmp_path, {"a0001.wav": ""})))


def test_real_files(recordings: Path) -> None:
    found = list(read(LocalFolder(str(recordings / "lung"))))
    assert len(found) == 10 and all(isinstance(each, Recording) for each in found)
    assert {each.patient for each in found if isinstance(each, Recording)} == {"101", "102", "103", "104"}
