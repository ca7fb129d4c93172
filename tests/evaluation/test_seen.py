"""A checkpoint that was trained on what it is to be measured on, found by its lineage."""

import pytest

from stetholm.corpus.manifest import Manifest
from stetholm.corpus.shards import write_corpus
from stetholm.errors import UserError
from stetholm.evaluation.examples import read_examples
from stetholm.evaluation.seen import find_seen, lineage, require_unseen
from tests.evaluation.corpus import row, rows


@pytest.fixture(scope="module")
def base(storage):
    base = storage.join("test-seen")
    write_corpus(storage, f"{base}/own", {"train": rows(range(0, 4)), "test": rows(range(4, 8))}, inputs={"a": 1})
    write_corpus(storage, f"{base}/overlapping", {"train": rows(range(6, 10))}, inputs={"a": 2})
    renamed = [{**row([5], "Report", "Report.", "Wheezes."), "patient": "another-name", "dataset": "other"}]
    write_corpus(storage, f"{base}/renamed", {"train": renamed}, inputs={"a": 3})
    beyond = [{**one, "distribution": "OOD"} for one in rows(range(4, 6))]
    write_corpus(storage, f"{base}/beyond", {"train": beyond}, inputs={"a": 4})
    return base


def checkpoint(storage, uri, corpus, parent=None, **settings):
    """A checkpoint trained on the corpus as it is now."""
    there = storage.exists(f"{corpus}/manifest.json")
    sha256 = Manifest.load(storage, corpus).sha256 if there else ""
    known = {"stage": "sft", "corpus": corpus, "corpus_sha256": sha256, "parent": parent, "settings": settings}
    storage.write_json(f"{uri}/lineage.json", known)
    return uri


def seen(storage, base, uri):
    return find_seen(uri, storage, read_examples(storage, f"{base}/own", "test"))


def test_a_checkpoint_of_the_same_corpus_has_not_seen_its_test_split(storage, base):
    found = seen(storage, base, checkpoint(storage, f"{base}/clean", f"{base}/own"))
    assert found.patients == found.recordings == found.gaps == () and found.corpora == (f"{base}/own",)
    require_unseen(found, "x", "test", False)


def test_an_ancestors_corpus_counts(storage, base):
    align = checkpoint(storage, f"{base}/align", f"{base}/overlapping")
    sft = checkpoint(storage, f"{base}/sft", f"{base}/own", align)
    found = seen(storage, base, sft)
    assert found.patients == ("heart-test/r6", "heart-test/r7") and found.recordings == ("r6", "r7")
    with pytest.raises(UserError, match=r"trained on 2 patients and 2 recordings of split 'test'.*heart-test/r6"):
        require_unseen(found, sft, "test", False)
    require_unseen(found, sft, "test", True)
    assert found.to_dict()["seen_patients"] == 2


def test_a_recording_under_another_patients_name_is_found(storage, base):
    found = seen(storage, base, checkpoint(storage, f"{base}/sly", f"{base}/renamed"))
    assert found.patients == () and found.recordings == ("r5",)
    with pytest.raises(UserError, match="recording r5"):
        require_unseen(found, "x", "test", False)


def test_out_of_domain_rows_count_where_they_were_trained_on(storage, base):
    assert not seen(storage, base, checkpoint(storage, f"{base}/ood", f"{base}/beyond")).recordings
    with_them = checkpoint(storage, f"{base}/with", f"{base}/beyond", out_of_domain=True)
    assert seen(storage, base, with_them).recordings == ("r4", "r5")


def test_what_cannot_be_compared_is_said(storage, base):
    gone = seen(storage, base, checkpoint(storage, f"{base}/lost", f"{base}/gone"))
    assert "no corpus at" in gone.gaps[0]
    assert "does not say what it was trained on" in seen(storage, base, f"{base}/nothing").gaps[0]


def test_a_corpus_that_was_split_anew_in_its_place_is_a_gap(storage, base):
    uri = f"{base}/moving"
    write_corpus(storage, uri, {"train": rows(range(4, 8)), "test": rows(range(0, 4))}, inputs={"seed": 1})
    trained = checkpoint(storage, f"{base}/before", uri)
    assert seen(storage, base, trained).recordings == ("r4", "r5", "r6", "r7")
    Manifest.remove(storage, uri)
    write_corpus(storage, uri, {"train": rows(range(0, 4)), "test": rows(range(4, 8))}, inputs={"seed": 2})
    found = find_seen(trained, storage, read_examples(storage, uri, "test"))
    assert not found.recordings and f"{uri} has changed since sft was trained on it" in found.gaps[0]


def test_an_ancestor_that_does_not_say_what_it_was_trained_on_is_a_gap(storage, base):
    imported = f"{base}/imported"
    storage.write_json(
        f"{imported}/lineage.json", {"stage": "import_weights", "corpus": "", "parent": "/data/theirs.pt"}
    )
    tuned = seen(storage, base, checkpoint(storage, f"{base}/tuned", f"{base}/own", imported))
    assert tuned.gaps == ("nobody says what /data/theirs.pt was trained on (import_weights)",)
    orphan = seen(storage, base, checkpoint(storage, f"{base}/orphan", f"{base}/own", f"{base}/deleted"))
    assert f"{base}/deleted does not say what it was trained on" in orphan.gaps[0]


def test_a_lineage_that_names_itself_ends(storage, base):
    uri = checkpoint(storage, f"{base}/loop", f"{base}/own", f"{base}/loop")
    assert len(list(lineage(uri, storage))) == 100
