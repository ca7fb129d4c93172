"""BERTScore in an actor pool: the same figures as in one process."""

import pytest

from stetholm.errors import UserError
from stetholm.evaluation import scorer_pool
from stetholm.evaluation.metrics import BertScorer
from stetholm.evaluation.scorer_pool import PooledBertScorer

SAID = ["a murmur is heard", "wheezes", "", "normal heart sounds", "a late systolic murmur"]
PAIRS = [(one, other) for one in SAID for other in SAID] + [("wheezes", "wheezes")]


def test_a_pool_scores_as_one_process_does_in_order(ray_cluster):
    predictions, references = zip(*PAIRS, strict=True)
    pooled = PooledBertScorer("minilm", pooled_from=0, pairs_per_call=10)
    here = BertScorer("minilm")
    assert pooled(predictions, references) == pytest.approx(here(predictions, references), abs=1e-5)
    assert pooled.name == here.name


def test_a_few_pairs_need_no_pool(monkeypatch):
    monkeypatch.setattr(scorer_pool.ray.data, "from_items", None)  # nothing is started for them
    assert PooledBertScorer("minilm")(["wheezes"], ["wheezes"]) == pytest.approx([1.0], abs=1e-5)


def test_a_backbone_that_is_none_shows_at_once():
    with pytest.raises(UserError, match=r"scorer './none' cannot be loaded"):
        PooledBertScorer("./none")
