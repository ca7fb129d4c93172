"""Runs that go wrong end with one line: no number, divergence, a batch that does not fit."""

from __future__ import annotations

import math

import pytest
import torch

from stetholm.errors import UserError
from stetholm.training.guard import Divergence, NonFinite, Watched, fitting, require_finite
from stetholm.training.metrics import Counts

SAMPLES = [(0, "a1"), (0, "b2")]


def seen(*steps: tuple[float, float | None]) -> NonFinite:
    finite = NonFinite()
    for step, (loss, norm) in enumerate(steps, start=11):
        finite.see(step, torch.tensor(loss), norm, [(0, f"s{step}")])
    return finite


def test_good_steps_give_their_losses_once():
    finite = seen((1.0, 2.0), (0.5, None))
    assert finite.check(good=10, rate=1e-3) == [1.0, 0.5]
    assert finite.check(good=10, rate=1e-3) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_step_is_named_with_its_samples(bad):
    with pytest.raises(
        UserError, match=r"the loss is -?(nan|inf) at step 12\. .*checkpoint is that of step 10"
    ) as caught:
        seen((1.0, 1.0), (bad, 1.0), (math.nan, 1.0)).check(good=10, rate=1e-3)
    text = str(caught.value)
    assert "Samples: s12" in text and "s11" not in text and "train.learning_rate (now 0.001)" in text


def test_a_gradient_alone_is_enough():
    with pytest.raises(UserError, match=r"the norm of the gradient is inf at step 11\. There is no checkpoint yet"):
        seen((1.0, math.inf)).check(good=0, rate=1e-3)


def follow(losses, margin=2.0, steps=20, history=()):
    divergence = Divergence(margin, steps, history)
    step = 0
    for step, loss in enumerate(losses, start=1):
        divergence.check(step, loss, good=0, rate=1e-3)
    return step


def test_a_loss_far_above_its_best_for_long_ends_the_run():
    with pytest.raises(UserError, match=r"the loss has diverged: .* above its best of 1 since step 1[0-9]\."):
        follow([1.0] * 10 + [9.0] * 60)


def test_a_peak_that_passes_does_not():
    assert follow([1.0] * 10 + [9.0] * 15 + [1.0] * 30 + [9.0] * 15) == 70


def test_nor_a_loss_that_stays_within_the_margin_or_a_margin_of_none():
    assert follow([1.0] * 10 + [2.5] * 100) == 110
    assert follow([1.0] * 10 + [9.0] * 100, margin=None) == 110


def test_a_run_that_goes_on_remembers_its_best():
    history = [{"step": step, "loss": 1.0} for step in range(-10, 0)]
    with pytest.raises(UserError, match="diverged"):
        follow([9.0] * 60, history=history)


def test_a_batch_that_does_not_fit_is_named():
    counts = Counts(samples=2, tokens=1900, places=2048)
    with pytest.raises(UserError) as caught, fitting(SAMPLES, counts):
        torch.empty(2**50, dtype=torch.float32)  # the allocator's own refusal
    text = str(caught.value)
    assert "a batch of 2 samples with 2,048 tokens (1,900 without padding) does not fit into memory" in text
    assert "train.tokens_per_batch to less than 2,048" in text and text.endswith("Samples: a1, b2")
    assert "\n" not in text


def test_so_is_one_that_does_not_fit_a_gpu():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")
    with pytest.raises(UserError, match=r"into GPU memory \(CUDA out of memory\. Tried to allocate 2\.00 GiB\)"):  # noqa: SIM117
        with fitting(SAMPLES, Counts(samples=2)):
            raise error


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), fitting(SAMPLES, Counts()):
        raise RuntimeError("shapes do not match")


def test_long_lists_of_samples_are_cut_and_the_rest_counted():
    many = [(0, f"s{index}") for index in range(40)]
    with pytest.raises(UserError, match=r"s0, .*s31 and 8 more$"), fitting(many, Counts(samples=40)):
        raise MemoryError


def test_a_watched_trainer_keeps_the_loss_and_the_counts():
    class Plain:
        def training_step(self, model, inputs, items=None):
            assert "counts" not in inputs
            return torch.tensor(2.0, requires_grad=True) * model

    class Trainer(Watched, Plain):
        pass

    trainer = Trainer()
    trainer.training_step(3.0, {"samples": SAMPLES, "counts": Counts(samples=2)}, None)
    assert trainer.counts.samples == 2
    assert trainer.loss is not None and trainer.loss.item() == 6.0 and not trainer.loss.requires_grad


def test_weights_that_are_no_numbers_are_not_saved():
    good = {"a": torch.ones(3), "count": torch.tensor(3)}
    require_finite(good, 7)
    with pytest.raises(UserError, match="b is not finite after step 7: no checkpoint is written"):
        require_finite(good | {"b": torch.tensor([1.0, math.nan])}, 7)
