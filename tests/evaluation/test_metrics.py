"""BERTScore, ROUGE-1 and means."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text.bert import bert_score

from stetholm.errors import UserError
from stetholm.evaluation.metrics import BertScorer, mean, rouge1

WORDS = ["heart", "sound", "normal", "abnormal", "murmur", "systolic", "wheeze", "shows", "the", "a", "loud"]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=15).map(" ".join)


@pytest.fixture(scope="module")
def scorer() -> BertScorer:
    return BertScorer("minilm")


def reference_f1(scorer: BertScorer, prediction: str, reference: str) -> float:
    """Torchmetrics on one pair, where its order of texts cannot go wrong."""

    def tokenise(text, max_length=512, **_):
        return scorer.tokenizer(text, padding=True, truncation=True, max_length=max_length, return_tensors="pt")

    def forward(model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = bert_score(
            [prediction], [reference], model=scorer.model, user_tokenizer=tokenise, user_forward_fn=forward
        )
    return float(found["f1"])


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_a_batch_scores_as_torchmetrics_scores_each_pair(scorer, pairs):
    ours = scorer([p for p, _ in pairs], [r for _, r in pairs])
    assert ours == pytest.approx([reference_f1(scorer, p, r) for p, r in pairs], abs=1e-5)


def test_the_same_text_scores_one_and_an_empty_one_zero(scorer):
    scores = scorer(["A late systolic murmur.", "", "wheezes", ""], ["A late systolic murmur.", "wheezes", "", ""])
    assert scores == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-5)


def test_score_is_symmetric_and_orders_by_meaning(scorer):
    near, far, back = scorer(
        ["wheezes are heard", "the weather is fine", "the lungs wheeze"],
        ["the lungs wheeze", "the lungs wheeze", "wheezes are heard"],
    )
    assert near == pytest.approx(back, abs=1e-5) and near > far


def test_the_backbone_and_its_layer_are_named(scorer):
    assert scorer.name == "all-MiniLM-L6-v2 (layer 6 of 6)"
    assert BertScorer("minilm@4").name == "all-MiniLM-L6-v2 (layer 4 of 6)"


@pytest.mark.parametrize(
    ("name", "says"), [("minilm@nine", "number"), ("minilm@7", "6 layers"), ("./no/such/model", "cannot be loaded")]
)
def test_a_scorer_that_is_none_is_refused(name, says):
    with pytest.raises(UserError, match=says):
        BertScorer(name)


def test_texts_beyond_one_batch_keep_their_order(scorer):
    predictions = [f"{'murmur ' * (index % 5)}sound {index}" for index in range(150)]
    assert scorer(predictions, predictions) == pytest.approx([1.0] * 150, abs=1e-4)


def test_rouge1_counts_shared_words():
    assert rouge1(["the heart sound"], ["the heart murmur"]) == pytest.approx([2 / 3])
    assert rouge1(["", "a b"], ["a b", "a b"]) == pytest.approx([0.0, 1.0])


def test_mean_leaves_out_what_is_not_there():
    assert mean([True, None, False]) == 0.5
    assert mean([None]) is None and mean([]) is None


def test_scoring_leaves_no_gradient(scorer):
    assert torch.is_grad_enabled() and scorer.model.training is False
