"""What the stages' trainers add to TRL's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from stetholm.model.lora import add_lora, set_trainable
from stetholm.settings import AlignSettings, DpoLoss, DpoSettings, LoraSettings, SftSettings
from stetholm.training.arguments import trainer_arguments
from stetholm.training.collate import Collate, Prepare, answers_of
from stetholm.training.losses import mdpo_loss, mean_logps, response_lengths
from stetholm.training.trainers import AlignTrainer, StageTrainer, _mean_by, reference_logps, score, trainer_for
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


@pytest.mark.parametrize(("name", "settings"), [("align", AlignSettings()), ("sft", SftSettings())])
def test_the_stages_that_train_the_encoder_give_it_that_rate(tmp_path, name, settings):
    model, processor = tiny_model()
    arguments = trainer_arguments(settings, 0, 1, tmp_path) | {"deepspeed": None}
    trainer = trainer_for(name, model, processor, arguments, settings)
    assert trainer.encoder_learning_rate == settings.encoder_learning_rate != settings.learning_rate


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


@pytest.fixture(scope="module")
def mdpo(tmp_path_factory):
    """A trainer of mDPO without DeepSpeed, and a batch of two pairs."""
    model, processor = tiny_model()
    add_lora(model, LoraSettings(r=4, dropout=0.0), name="dpo")
    set_trainable(model, "dpo")
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B.dpo." in name:
            parameter.data.normal_(std=0.1)  # the policy has left the reference
    settings = DpoSettings(batch_size=2, label_smoothing=0.1)
    arguments = trainer_arguments(settings, 0, 1, tmp_path_factory.mktemp("mdpo")) | {"deepspeed": None}
    trainer = trainer_for("dpo", model, processor, arguments, settings)
    trainer.use(None)
    prepare = Prepare(processor, 256, answers_of("dpo"))
    rows = []
    for number in range(2):
        row = {
            "sample_id": f"s{number}",
            "epoch": 0,
            "task": "Report",
            "dataset": "heart-test",
            "instruction": "What is heard?",
            "chosen": f"A murmur of grade {number}.",
            "rejected": "Nothing that I could tell.",
            "recordings": 1,
            "features": np.random.default_rng(number).random((1, 64, 218), dtype=np.float32).tobytes(),
        }
        rows.append(row | prepare(row))
    return trainer, lambda **more: Collate("dpo", processor, **more)(rows) | {"samples": [(0, "s0"), (0, "s1")]}


def loss_of(mdpo, **more):
    trainer, batch = mdpo
    return trainer.compute_loss(trainer.model.eval(), batch(**more))


def test_mdpo_is_the_pure_loss(mdpo):
    """Through TRL, one forward and the adapter switched off: the published formula."""
    trainer, batch = mdpo
    inputs = batch()
    frozen = (reference_logps(trainer.model.eval(), inputs) / response_lengths(inputs["labels"])).chunk(3)
    with torch.no_grad():
        pooled = trainer.model.model.pool_audio(inputs["input_features"])
        scored = score(trainer.model, trainer.model, inputs, pooled)
    policy = mean_logps(scored.log_probs, inputs["labels"]).chunk(3)
    assert not torch.allclose(policy[0], frozen[0], atol=1e-3)
    torch.testing.assert_close(loss_of(mdpo), mdpo_loss(*policy, *frozen).loss)


def test_a_reference_from_ahead_gives_the_same_loss(mdpo):
    trainer, batch = mdpo
    scores = reference_logps(trainer.model.eval(), batch()).view(3, 2).T.tolist()
    ahead = {(0, f"s{number}"): tuple(one) for number, one in enumerate(scores)}
    torch.testing.assert_close(loss_of(mdpo, reference=ahead), loss_of(mdpo))


@pytest.mark.parametrize("name", get_args(DpoLoss))
def test_each_of_trl_s_losses_can_stand_for_l_dpo(mdpo, name, monkeypatch):
    trainer, _ = mdpo
    monkeypatch.setattr(trainer, "loss_types", [name])
    trainer.model.zero_grad()
    loss = loss_of(mdpo)
    loss.backward()
    assert torch.isfinite(loss)
    trained = [p for n, p in trainer.model.named_parameters() if ".lora_A.dpo." in n]
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in trained)


def test_losses_are_added_by_their_weights(mdpo, monkeypatch):
    trainer, _ = mdpo
    terms = {}
    for name in ("sigmoid_norm", "sft"):
        monkeypatch.setattr(trainer, "loss_types", [name])
        whole = loss_of(mdpo).item()
        terms[name] = trainer._metrics["train"]["dpo"][-1]
        rest = whole - terms[name]  # L_cond and L_anchor
    monkeypatch.setattr(trainer, "loss_types", ["sigmoid_norm", "sft"])
    monkeypatch.setattr(trainer, "loss_weights", [1.0, 0.5])
    assert loss_of(mdpo).item() == pytest.approx(terms["sigmoid_norm"] + 0.5 * terms["sft"] + rest, rel=1e-5)


def test_gradient_checkpointing_is_the_decoder_s(tmp_path):
    model, processor = tiny_model()
    settings = SftSettings(gradient_checkpointing=True)
    arguments = trainer_arguments(settings, 0, 1, tmp_path) | {"deepspeed": None}
    trainer_for("sft", model, processor, arguments, settings)
    assert model.get_decoder().is_gradient_checkpointing
