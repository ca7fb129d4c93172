"""PhysioNet/CinC Challenge 2016, in its own folders, naming and label format."""

from pathlib import Path

import pytest

from stetholm.corpus.recording import Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.cinc2016 import SPLITS, read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish


def test_labels_qualities_and_splits_of_whole_subsets(tmp_path: Path) -> None:
    folder = publish(
        tmp_path,
        {
            "training-a/a0001.wav": "",
            "training-a/a0002.wav": "",
            "training-a/a0001.hea": "a0001 2 2000 71332\n",
            "training-a/REFERENCE.csv": "a0001,1\na0002,-1\n",
            "training-a/REFERENCE-SQI.csv": "a0001,1,1\na0002,-1,0\n",
            "training-e/e00001.wav": "",
            "training-e/REFERENCE.csv": "e00001,-1\n",
            "validation/a0001.wav": "",
            "validation/REFERENCE.csv": "a0001,1\n",
        },
    )
    first, second, third = read(folder)
    assert first == Recording(
        "training-a/a0001.wav", "cinc", "heart", "a0001", "ODC-By-1.0",
        labels={"status": "abnormal", "quality": "good"}, split="test", distribution="OOD",
    )  # fmt: skip
    assert isinstance(second, Recording) and second.labels == {"status": "normal", "quality": "unsure"}
    assert isinstance(third, Recording) and (third.labels, third.split) == ({"status": "normal"}, "train")
    assert [subset for subset, split in SPLITS.items() if split == "val"] == ["b"]


def test_what_makes_no_sense_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = publish(
        tmp_path,
        {
            "training-b/b0001.wav": "",
            "training-b/b0002.wav": "",
            "training-b/b0003.wav": "",
            "training-b/noise.wav": "",
            "training-b/REFERENCE.csv": "b0001,-1\nb0002,0\nb0004,1\nb0001,1\n",
            "training-c/c0001.wav": "",
        },
    )
    found = list(read(folder))
    assert [(each.source, each.line, each.reason) for each in found if isinstance(each, Reject)] == [
        ("training-b/REFERENCE.csv", 2, "the label is not 1 or -1: '0'"),
        ("training-b/REFERENCE.csv", 3, "there is no recording 'b0004', or it stood above"),
        ("training-b/REFERENCE.csv", 4, "there is no recording 'b0001', or it stood above"),
        ("training-b/b0002.wav", 0, "training-b/REFERENCE.csv has no usable row of it"),
        ("training-b/b0003.wav", 0, "training-b/REFERENCE.csv has no usable row of it"),
        ("training-b/noise.wav", 0, "the name is not a0001 or the like"),
        ("training-c/c0001.wav", 0, "training-c/REFERENCE.csv has no usable row of it"),
    ]
    assert [each.patient for each in found if isinstance(each, Recording)] == ["b0001"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"training-a/a0001.wav": ""}, "cinc needs its file REFERENCE.csv"),
        ({"validation/a0001.wav": "", "REFERENCE.csv": "a0001,1\n"}, "has a name of cinc"),
    ],
)
def test_another_folder(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read(publish(tmp_path, files)))
