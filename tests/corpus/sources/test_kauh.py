"""KAUH, whose labels stand in the names of its files."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.recording import Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.kauh import read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish


@dataclass(frozen=True)
class Named:
    """A folder of empty files with names that no disk may take."""

    names: tuple[str, ...]
    local: bool = True

    def files(self) -> dict[str, int]:
        return dict.fromkeys(self.names, 0)

    def read(self, name: str, max_bytes: int) -> bytes:
        return b""


def one(name: str) -> Recording:
    (found,) = read(Named((name,)))
    assert isinstance(found, Recording)
    return found


def test_names(tmp_path: Path) -> None:
    names = ["BP1_Asthma,I E W,P L L,70,M.wav", "DP1_Asthma,I E W,P L L,70,M.wav", "EP100_N,N,P R M,70,F.wav"]
    first, second, third = read(publish(tmp_path, {f"Audio Files/{name}": "" for name in names}))
    assert first == Recording(
        f"Audio Files/{names[0]}", "kauh", "lung", "1", "CC-BY-4.0",
        site="lower posterior left chest", device="Littmann 3200",
        labels={
            "status": "abnormal", "finding": "wheezes", "phase": "inspiration and expiration",
            "diagnosis": "asthma", "age": "70", "sex": "male", "filter": "bell",
        },
    )  # fmt: skip
    assert isinstance(second, Recording) and isinstance(third, Recording)
    assert (second.patient, second.labels["filter"]) == ("1", "diaphragm")
    assert third.labels == {
        "status": "normal", "finding": "no added sounds", "diagnosis": "no lung disease",
        "age": "70", "sex": "female", "filter": "extended range",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "diagnosis", "finding", "site"),
    [
        ("BP10_asthma,E W,P R U ,59,m.wav", "asthma", "wheezes", "upper posterior right chest"),
        ("DP66_heart failure,Crep,P R L ,43,M.wav", "heart failure", "crackles", "lower posterior right chest"),
        ("BP6_Plueral Effusion,I C B,P L R,81,M.wav", "pleural effusion", "bronchial breathing and crackles",
         "posterior chest"),
        ("EP26_Lung Fibrosis,Crep,P,90,F.wav", "lung fibrosis", "crackles", "posterior chest"),
        ("DP105_Lung Fibrosis,Crep,A U R,44,M.wav", "lung fibrosis", "crackles", "upper anterior right chest"),
        ("BP2_Asthma,E W,P L L R,52,F.wav", "asthma", "wheezes", "posterior chest"),
        ("DP69_pneumonia,Bronchial,P R L ,64,M.wav", "pneumonia", "bronchial breathing",
         "lower posterior right chest"),
        ("BP3_Heart Failure + COPD,I C E W,A R L,63,M.wav", "heart failure and COPD", "crackles and wheezes",
         "lower anterior right chest"),
        ("DP20_Asthma and lung fibrosis,C,A R M,90,M.wav", "asthma and lung fibrosis", "crackles",
         "middle anterior right chest"),
        ("DP21_BRON,Crep,,20,M.wav", "bronchitis", "crackles", None),
    ],
)  # fmt: skip
def test_spellings(name: str, diagnosis: str, finding: str, site: str | None) -> None:
    found = one(name)
    assert (found.labels["diagnosis"], found.labels["finding"], found.site) == (diagnosis, finding, site)


def test_what_makes_no_sense_is_rejected_and_the_rest_goes_on() -> None:
    names = ("BP1_Asthma,E Q,P L L,70,M.wav", "BP2_flu,E W,P L L,70,M.wav", "BP3_N,N,P L L,old,M.wav",
             "BP4_COPD,I E,P L L,70,M.wav", "BP5_N,N,P L L,70,M.wav")  # fmt: skip
    *rejects, found = read(Named(names))
    assert [reject.reason for reject in rejects if isinstance(reject, Reject)] == [
        "sounds 'E Q' are none of KAUH's",
        "diagnosis 'flu' is none of KAUH's",
        "the name is not filter and patient_diagnosis,sounds,site,age,sex",
        "sounds 'I E' are none of KAUH's",
    ]
    assert isinstance(found, Recording) and found.patient == "5"


def test_another_folder() -> None:
    with pytest.raises(UserError, match="no recording below the folder has a name of KAUH"):
        list(read(Named(("101_1b1_Al_sc_Meditron.wav",))))


@given(st.text(), st.text(), st.text(), st.text())
def test_any_name_is_read_or_rejected(diagnosis: str, sounds: str, site: str, rest: str) -> None:
    names = (f"BP1_{diagnosis},{sounds},{site},7,M.wav", f"BP2_N,N,{site},7,M.wav", f"{rest}.wav", "BP3_N,N,P,7,F.wav")
    assert all(isinstance(found, Recording | Reject) for found in read(Named(names)))
