"""The published recipe computes what our training computes: the benchmarks compare speed, not mathematics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.published_model import PublishedModel
from benchmarks.train import bare
from benchmarks.train.bare import train_bare
from benchmarks.train.ours import train_ours
from benchmarks.train.recipes import PublishedMdpo, PublishedSft
from benchmarks.train.samples import MemoryStream, training_pairs
from stetholm.model.fresh import build_model
from stetholm.model.lora import add_lora, set_trainable
from stetholm.settings import ModelSettings
from stetholm.training import worker
from stetholm.training.collate import Collate, Prepare, answers_of
from stetholm.training.losses import mdpo_loss, mean_logps, response_lengths
from stetholm.training.response_head import install_response_head
from stetholm.training.trainers import reference_logps, score
from tests.model.tiny import settle
from tests.serving.tiny import save_tiny_llama
from tests.training.together import trains_alone

CLOSE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    """A language model that is small but not indifferent to what it reads."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), max_position_embeddings=1024, initializer_range=0.1)
    return ModelSettings(language_model=str(folder))


def parts(settings: ModelSettings, stage: str) -> tuple[Any, PublishedModel, list[dict[str, Any]], Collate, int]:
    model, processor = build_model(settings)
    settle(model)
    prepare = Prepare(processor, 1024, answers_of(stage))
    rows = [row | prepare(row) | {"epoch": 0} for row in training_pairs(3)]
    eos = int(processor.tokenizer.eos_token_id)
    return model, PublishedModel(model, settings), rows, Collate(stage, processor), eos


def test_sft_has_our_loss_of_each_sample(settings: ModelSettings) -> None:
    model, published, rows, collate, eos = parts(settings, "sft")
    recipe = PublishedSft(published, eos)
    published.eval()
    theirs = torch.stack(recipe.losses(rows))
    batch = collate(rows)
    names = ("input_ids", "attention_mask", "labels")
    sounds = batch["input_features"][batch["audio_index"]]
    sums, counts = model.response_logps(**{name: batch[name] for name in names}, input_features=sounds)
    assert len(set(counts.tolist())) > 1  # of different lengths, so that there is padding
    torch.testing.assert_close(-sums / counts, theirs, **CLOSE)
    torch.testing.assert_close(model(**batch).loss, (theirs * counts).sum() / counts.sum(), **CLOSE)
    other = [row | {"features": bytes(len(row["features"]))} for row in rows]
    assert not torch.allclose(torch.stack(recipe.losses(other)), theirs, **CLOSE)  # the recordings matter


def test_the_bare_loop_has_our_losses(settings: ModelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, so that gradients and optimizer are alike too."""
    losses: dict[str, list[float]] = {"ours": [], "bare": []}
    make_model, make_trainer, trainers = worker.stage_model, worker.trainer_for, []

    def model_without_dropout(*args: Any) -> Any:
        made = make_model(*args)
        for module in made[0].modules():  # each side draws in its own way
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        made[0].register_forward_hook(
            lambda module, inputs, outputs: losses["bare"].append(outputs.loss.item()) if not trainers else None
        )
        return made

    def watched_trainer(*args: Any) -> Any:
        trainers.append(make_trainer(*args))
        return trainers[-1]

    monkeypatch.setattr(worker, "stage_model", model_without_dropout)
    monkeypatch.setattr(worker, "trainer_for", watched_trainer)
    monkeypatch.setattr(bare, "training_pairs", lambda: training_pairs(16))
    model = {"language_model": settings.language_model, "lora": {"dropout": 0.0}}
    train = {"model": model, "batch_size": 4, "precision": "fp32", "warmup_fraction": 0.0, "max_tokens": 1024}
    with trains_alone():
        train_bare(Steps(3, lambda: None), **train)
        train_ours(Steps(3, lambda: losses["ours"].append(float(trainers[0].loss))), stage="sft", samples=16, **train)
    assert len(losses["ours"]) == 3 and losses["ours"][2] != losses["ours"][0]
    assert losses["bare"] == pytest.approx(losses["ours"], rel=1e-4)


class Steps:
    """A pace that wants so many steps, and says when each is done."""

    def __init__(self, count: int, done: Callable[[], None]) -> None:
        self.count, self.done = count, done

    def ready(self) -> bool:
        return True

    def step(self, *numbers: float) -> bool:
        self.done()
        self.count -= 1
        return self.count > 0


def test_mdpo_has_our_loss(settings: ModelSettings) -> None:
    model, published, rows, collate, eos = parts(settings, "dpo")
    recipe = PublishedMdpo(published, eos)
    add_lora(model, settings.lora, "dpo")
    set_trainable(model, "dpo")
    # The policy leaves the reference, alike on both sides.
    for projector in (model.model.projector, published.projector):
        torch.manual_seed(1)
        for parameter in projector.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    published.eval()
    install_response_head(model)
    for row in rows:
        batch = collate([row])
        pooled = model.model.pool_audio(batch["input_features"])
        policy = mean_logps(score(model, model, batch, pooled).log_probs, batch["labels"]).chunk(3)
        before = (reference_logps(model, batch) / response_lengths(batch["labels"])).chunk(3)
        assert abs((policy[0] - before[0]).item()) > 1e-3
        torch.testing.assert_close(recipe.loss(row), mdpo_loss(*policy, *before).loss, **CLOSE)


def test_sft_trains_lora_projector_and_encoder(settings: ModelSettings) -> None:
    _, published, rows, _, eos = parts(settings, "sft")
    recipe = PublishedSft(published, eos)
    moved = changed_by(published, lambda: [recipe.step(rows) for _ in range(2)])
    assert {"lora_B", "projector", "network", "stem"} <= moved
    assert not [name for name in moved if name == "frozen"]


def test_mdpo_trains_lora_and_projector_alone(settings: ModelSettings) -> None:
    _, published, rows, _, eos = parts(settings, "dpo")
    recipe = PublishedMdpo(published, eos)
    recipe.train()
    whole = {name: tensor.clone() for name, tensor in recipe.reference.state_dict().items()}
    moved = changed_by(published, lambda: [recipe.step(row) for row in rows])
    assert {"lora_B", "projector"} <= moved and not moved & {"network", "stem", "frozen"}
    assert all(tensor.equal(whole[name]) for name, tensor in recipe.reference.state_dict().items())


def changed_by(model: PublishedModel, steps: Any) -> set[str]:
    """Which parts the steps change: stem, network, projector, lora_A, lora_B, or the frozen language model."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    steps()
    moved = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    return {part_of(name) for name in moved}


def part_of(name: str) -> str:
    if not name.startswith("lm."):
        return name.split(".")[0]
    return next((part for part in ("lora_A", "lora_B") if f".{part}." in name), "frozen")


def test_rows_in_memory_are_dealt_once_an_epoch() -> None:
    rows = training_pairs(5)
    assert len({row["sample_id"] for row in rows}) == 5
    streams = [MemoryStream(rows, None, epochs=2, rank=rank, world_size=2) for rank in range(2)]
    dealt = [[(row["epoch"], row["sample_id"]) for row in stream.rows()] for stream in streams]
    assert [len(part) for part in dealt] == [streams[0].rows_of(rank) for rank in range(2)] == [6, 4]
    assert len({place for part in dealt for place in part}) == 10
