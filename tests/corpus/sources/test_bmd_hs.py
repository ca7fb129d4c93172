"""BMD-HS, in its own naming and table formats."""

from pathlib import Path

import pytest

from stetholm.corpus.recording import Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.bmd_hs import read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish

HEADER = "patient_id,AS,AR,MR,MS,N," + ",".join(f"recording_{number}" for number in range(1, 9)) + "\n"
SPOTS = ("sup_Mit", "sup_Tri", "sup_Pul", "sup_Aor", "sit_Mit", "sit_Tri", "sit_Pul", "sit_Aor")


def row(patient: str, flags: str, prefix: str) -> str:
    return ",".join((f"patient_{patient}", flags, *(f"{prefix}_{patient}_{spot}" for spot in SPOTS))) + "\n"


def audio(patient: str, prefix: str) -> dict[str, str]:
    return {f"train/{prefix}_{patient}_{spot}.wav": "" for spot in SPOTS}


def test_diseases_sites_and_people(tmp_path: Path) -> None:
    folder = publish(
        tmp_path,
        {
            "train.csv": HEADER + row("016", "0,1,0,0,0", "AR") + row("013", "1,1,0,1,0", "MD")
            + row("008", "0,0,1,1,0", "MD") + row("089", "0,0,0,0,1", "N"),
            "additional_metadata.csv": "patient_id,Age,Gender,Smoker,Lives\npatient_016,30-39,M,1,U\n",
            **audio("016", "AR"), **audio("013", "MD"), **audio("008", "MD"), **audio("089", "N"),
        },
    )  # fmt: skip
    found = [each for each in read(folder) if isinstance(each, Recording)]
    assert len(found) == 32 and {each.distribution for each in found} == {"OOD"}
    by_name = {each.filename: each for each in found}
    assert by_name["train/AR_016_sit_Aor.wav"] == Recording(
        "train/AR_016_sit_Aor.wav", "BMD-HS", "heart", "016", "CC-BY-NC-ND-4.0", site="aortic area",
        labels={"status": "abnormal", "diagnosis": "aortic regurgitation", "posture": "sitting", "age": "30-39",
                "sex": "male", "smoker": "yes", "residence": "urban"},
        distribution="OOD",
    )  # fmt: skip
    assert by_name["train/N_089_sup_Tri.wav"].labels == {
        "status": "normal", "diagnosis": "no heart disease", "posture": "supine",
    }  # fmt: skip
    assert {each.labels["diagnosis"] for each in found if each.patient in ("008", "013")} == {
        "mitral regurgitation and mitral stenosis",
        "aortic stenosis, aortic regurgitation and mitral stenosis",
    }


def test_what_makes_no_sense_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    table = (
        HEADER + row("022", "N/A,N/A,N/A,N/A,N/A", "MD") + row("089", "1,0,0,0,1", "N") + row("004", "0,0,1,0,0", "MR")
    )
    files = {"MD_022_sup_Mit.wav": "", "MR_004_sup_Mit.wav": "", "MR_004_sup_Neck.wav": ""}
    found = list(read(publish(tmp_path, {"train.csv": table, **files})))
    rejects = [(each.source, each.line, each.reason) for each in found if isinstance(each, Reject)]
    assert rejects[:3] == [
        ("train.csv", 2, "AS is not 0 or 1: 'N/A'"),
        ("train.csv", 3, "it is both normal and ill, or neither"),
        ("train.csv", 4, "there is no recording 'MR_004_sup_Tri', or it stood above"),
    ]
    assert rejects[-2:] == [
        ("MD_022_sup_Mit.wav", 0, "train.csv has no usable row of it"),
        ("MR_004_sup_Neck.wav", 0, "train.csv has no usable row of it"),
    ]
    assert [each.filename for each in found if isinstance(each, Recording)] == ["MR_004_sup_Mit.wav"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"AR_016_sit_Aor.wav": ""}, "BMD-HS needs its file train.csv"),
        ({"train.csv": HEADER, "a0001.wav": ""}, "has a name of BMD-HS"),
    ],
)
def test_another_folder(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read(publish(tmp_path, files)))
