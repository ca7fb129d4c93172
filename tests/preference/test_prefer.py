"""The preference job from a corpus and a checkpoint to a corpus of pairs that a stream reads."""

import json

import pytest

from stetholm import runs
from stetholm.corpus.shards import write_corpus
from stetholm.corpus.stream import CorpusStream, read_features
from stetholm.errors import UserError
from stetholm.evaluation.examples import read_rows
from stetholm.evaluation.metrics import BertScorer
from stetholm.preference.prefer import prefer
from stetholm.settings import load_settings
from tests.evaluation.corpus import make_checkpoint, make_corpus, rows


@pytest.fixture(scope="module")
def overrides(storage, tmp_path_factory):
    base = storage.join("test-prefer")
    checkpoint = make_checkpoint(storage, f"{base}/checkpoint", tmp_path_factory.mktemp("tiny"))
    corpus = make_corpus(storage, f"{base}/corpus")
    return [f"model.init_from={checkpoint}", f"corpus.uri={corpus}", "prefer.pairs=5", "prefer.max_new_tokens=8"]


def settings(overrides, *more):
    return load_settings(overrides=[*overrides, *more], environ={})


def test_pairs_are_a_corpus_with_candidates_and_scores(storage, overrides, ray_cluster):
    chosen = settings(overrides, "run.name=prefer-once", "prefer.candidates=3")
    result = prefer(chosen, storage)
    assert result["output"] == runs.run_uri(chosen, storage, "prefer", "pairs")
    assert result["pairs"] + result["skipped"] == 5 and result["pairs"] > 0
    assert result["candidates_per_second"] > 0
    json.dumps(result)

    columns = ("chosen", "rejected", "candidates", "scores")
    stream = CorpusStream(storage, result["output"], split="train", seed=0, training=False, extra_columns=columns)
    pairs = list(stream.rows())
    assert len(pairs) == result["pairs"]
    scorer = BertScorer()
    for row in pairs:
        assert len(row["candidates"]) == len(row["scores"]) == 3
        assert row["scores"] == pytest.approx(scorer(row["candidates"], [row["response"]] * 3), abs=1e-4)
        best, worst = (row["scores"].index(pick(row["scores"])) for pick in (max, min))
        assert (row["chosen"], row["rejected"]) == (row["candidates"][best], row["candidates"][worst])
        assert read_features(row).shape == (len(row["recording_ids"]), 64, 218)

    everything = storage.read_table(runs.run_uri(chosen, storage, "prefer", "candidates.parquet"))
    assert everything.num_rows == 5 and sum(everything["skipped"].to_pylist()) == result["skipped"]
    assert prefer(chosen, storage) == result  # from its record


@pytest.mark.long
def test_held_out_pairs_come_from_the_validation_split(storage, overrides, ray_cluster):
    corpus = storage.join("test-prefer", "three-splits")
    splits = {"train": rows(range(0, 2)), "val": rows(range(2, 4)), "test": rows(range(4, 5))}
    write_corpus(storage, corpus, splits, inputs={"source": "test"})
    chosen = settings(overrides, f"corpus.uri={corpus}", "run.name=prefer-val", "prefer.val_pairs=3", "prefer.pairs=3")
    result = prefer(chosen, storage)
    assert result["pairs"] + result["val_pairs"] + result["skipped"] == 6
    for split in ("train", "val"):
        made = read_rows(storage, result["output"], split, ["sample_id", "chosen", "rejected"])
        assert {row["sample_id"] for row in made} <= {row["sample_id"] for row in splits[split]}


@pytest.mark.long
def test_nothing_but_ties_says_what_to_change(storage, overrides, ray_cluster):
    # Too cold to differ: every candidate is the greedy answer.
    with pytest.raises(UserError, match=r"tie.*prefer\.temperatures"):
        prefer(settings(overrides, "run.name=prefer-ties", "prefer.temperatures=[1.0e-6]"), storage)


@pytest.mark.parametrize("temperatures", ["[]", "[0.0]", "[-1.0, 1.0]"])
def test_temperatures_that_make_no_pairs_are_refused(storage, overrides, temperatures):
    with pytest.raises(UserError, match=r"prefer\.temperatures"):
        prefer(settings(overrides, "run.name=prefer-cold", f"prefer.temperatures={temperatures}"), storage)


def test_a_run_without_a_checkpoint_says_what_to_do(storage, overrides):
    with pytest.raises(UserError, match="no finished checkpoint"):
        prefer(settings(overrides[1:], "run.name=prefer-none"), storage)
