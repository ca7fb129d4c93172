"""ZCHSound, in its own folders, naming and table format."""

from pathlib import Path

import pytest

from stetholm.corpus.recording import Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.zchsound import read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish

CLEAN, NOISE = "Clean Heartsound Data Details.csv", "Noise Heartsound Data Details.csv"
HEADER = "fileName;gender;age(days);diagnosis\n"


def test_diagnoses_and_qualities(tmp_path: Path) -> None:
    folder = publish(
        tmp_path,
        {
            CLEAN: HEADER + "ZCH0001.wav;M;2310;NORMAL\nZCH0700.wav;F;;PFO\n",
            NOISE: HEADER + "ZCH1163.wav;M;2;ASD\n",
            "clean Heartsound Data/ZCH0001.wav": "",
            "clean Heartsound Data/ZCH0700.wav": "",
            "Noise Heartsound Data/ZCH1163.wav": "",
        },
    )
    normal, silent, septal = read(folder)
    assert normal == Recording(
        "clean Heartsound Data/ZCH0001.wav", "heart-zch", "heart", "ZCH0001", "NOASSERTION",
        labels={"status": "normal", "diagnosis": "no heart disease", "quality": "clean", "sex": "male",
                "age": "2310 days"},
    )  # fmt: skip
    assert isinstance(silent, Recording)
    assert silent.labels == {"diagnosis": "patent foramen ovale", "quality": "clean", "sex": "female"}
    assert isinstance(septal, Recording)
    assert (septal.labels["diagnosis"], septal.labels["status"]) == ("atrial septal defect", "abnormal")
    assert septal.labels["quality"] == "noisy"


def test_what_makes_no_sense_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    rows = "ZCH0001.wav;M;-3;VSD\nZCH0002.wav;M;5;COLD\nZCH0004.wav;F;5;PDA\n"
    names = ("ZCH0001.wav", "ZCH0002.wav", "ZCH0003.wav")
    found = list(read(publish(tmp_path, {CLEAN: HEADER + rows, **dict.fromkeys(names, "")})))
    assert [(each.source, each.line, each.reason) for each in found if isinstance(each, Reject)] == [
        (CLEAN, 3, "diagnosis is not NORMAL or ASD or VSD or PDA or PFO: 'COLD'"),
        (CLEAN, 4, "there is no recording 'ZCH0004', or it stood above"),
        ("ZCH0002.wav", 0, "no table has a usable row of it"),
        ("ZCH0003.wav", 0, "no table has a usable row of it"),
    ]
    (good,) = (each for each in found if isinstance(each, Recording))
    assert good.labels["diagnosis"] == "ventricular septal defect" and "age" not in good.labels


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ZCH0001.wav": ""}, "heart-zch needs its file Clean Heartsound Data Details.csv"),
        ({NOISE: HEADER, "a0001.wav": ""}, "has a name of heart-zch"),
    ],
)
def test_another_folder(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read(publish(tmp_path, files)))
