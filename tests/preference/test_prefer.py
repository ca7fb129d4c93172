"""The preference job from a corpus and a checkpoint to a corpus of pairs that a stream reads."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stetholm import runs
from stetholm.corpus.stream import CorpusStream, read_features
from stetholm.errors import UserError
from stetholm.evaluation.metrics import BertScorer
from stetholm.preference.prefer import prefer
from stetholm.settings import load_settings
from tests.evaluation.corpus import make_checkpoint, make_corpus


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
    rows = list(stream.rows())
    assert len(rows) == result["pairs"]
    scorer = BertScorer()
    for row in rows:
        assert len(row["candidates"]) == len(row["scores"]) == 3
        assert row["scores"] == pytest.approx(scorer(row["candidates"], [row["response"]] * 3), abs=1e-4)
        best, worst = (row["scores"].index(pick(row["scores"])) for pick in (max, min))
        assert (row["chosen"], row["rejected"]) == (row["candidates"][best], row["candidates"][worst])
        assert read_features(row).shape == (len(row["recording_ids"]), 64, 218)

    everything = pq.read_table(
        pa.BufferReader(storage.read_bytes(runs.run_uri(chosen, storage, "prefer", "candidates.parquet")))
    )
    assert everything.num_rows == 5 and sum(everything["skipped"].to_pylist()) == result["skipped"]
    assert prefer(chosen, storage) == result  # from its record


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
