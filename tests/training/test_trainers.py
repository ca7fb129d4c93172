"""What the stages' trainers add to TRL's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from stetholm.settings import AlignSettings
from stetholm.training.trainers import AlignTrainer, StageTrainer, _mean_by
from tests.serving.tiny import tiny_model


@pytest.fixture(scope="module")
def parts():
    return tiny_model()


def stage(model, **values):
    trainer = StageTrainer.__new__(StageTrainer)
    trainer.model = model.requires_grad_(True)
    trainer.args = SimpleNamespace(
        learning_rate=1e-3, weight_decay=0.01, adam_beta1=0.9, adam_beta2=0.98, adam_epsilon=1e-6
    )
    for key, value in values.items():
        setattr(trainer, key, value)
    return trainer


def test_the_encoder_has_a_rate_of_its_own(parts):
    model, _ = parts
    optimizer = stage(model, encoder_learning_rate=1e-4).create_optimizer()
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert rate[id(parameter)] == (1e-4 if ".audio_tower." in name else 1e-3), name
        assert decay[id(parameter)] == (0.01 if parameter.dim() > 1 else 0.0), name


def test_without_it_all_have_the_same(parts):
    optimizer = stage(parts[0]).create_optimizer()
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_texts_read_together_are_as_read_alone(parts):
    model, processor = parts
    trainer = AlignTrainer.__new__(AlignTrainer)
    trainer.processing_class = processor
    texts = ["A murmur.", "The lung sound is normal, with vesicular breath sounds only."]
    together = trainer._read(model, texts)
    alone = torch.cat([trainer._read(model, [text]) for text in texts])
    torch.testing.assert_close(together, alone)


def test_the_norm_of_text_is_that_of_the_embedded_vocabulary(parts):
    model, _ = parts
    trainer = AlignTrainer.__new__(AlignTrainer)
    trainer.use_settings(AlignSettings())
    expected = model.get_input_embeddings().weight.norm(dim=-1).mean()
    torch.testing.assert_close(trainer._text_norm(model), expected)


def test_means_are_by_row():
    values = torch.tensor([[1.0], [3.0], [10.0]])
    assert _mean_by(values, torch.tensor([0, 0, 1]), 2).tolist() == [[2.0], [10.0]]
