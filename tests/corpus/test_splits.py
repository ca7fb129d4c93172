"""Splits: no patient in two, the publisher's where there are any, the same again whatever else is there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.recording import Recording
from stetholm.corpus.splits import assign_splits

recordings = st.builds(
    lambda number, dataset, patient, split: Recording(f"{number}.wav", dataset, "lung", patient, "", split=split),
    st.integers(0, 10**6),
    st.sampled_from(["icbhi", "kauh"]),
    st.text("ab", min_size=1, max_size=4),
    st.sampled_from([None, None, "train", "val", "test"]),
)
corpora = st.lists(recordings, max_size=60)


@given(corpora, st.integers(0, 5))
def test_no_patient_stands_in_two_splits(corpus: list[Recording], seed: int) -> None:
    splits = assign_splits(corpus, seed)
    assert splits.keys() == {(recording.dataset, recording.patient) for recording in corpus}
    for recording in corpus:
        if recording.split == "test":  # nothing published for testing is trained on
            assert splits[recording.dataset, recording.patient] == "test"
        if recording.split == "val":
            assert splits[recording.dataset, recording.patient] in ("val", "test")


@given(corpora, corpora, st.integers(0, 5))
def test_growth_moves_nobody(corpus: list[Recording], more: list[Recording], seed: int) -> None:
    before = assign_splits(corpus, seed)
    after = assign_splits(corpus + more, seed, earlier=before)
    assert after | before == after
    unpublished = [recording for recording in corpus + more if recording.split is None]
    alone = assign_splits(unpublished, seed)
    for patient, split in assign_splits(unpublished[::2], seed).items():
        assert alone[patient] == split


def test_shares_and_seed() -> None:
    many = [Recording(f"{number}.wav", "kauh", "lung", str(number), "") for number in range(4000)]
    splits = assign_splits(many, seed=0)
    shares = {name: list(splits.values()).count(name) / len(splits) for name in ("train", "val", "test")}
    assert abs(shares["test"] - 0.2) < 0.03 and abs(shares["val"] - 0.1) < 0.03
    assert splits != assign_splits(many, seed=1)
