"""Model FLOPs against what torch counts while a step runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from stetholm.model.lora import add_lora, reference, set_trainable
from stetholm.settings import LoraSettings
from stetholm.training.flops import Costs, measured_peak, step_costs
from stetholm.training.metrics import Counts, count
from stetholm.training.response_head import install_response_head
from tests.serving.tiny import tiny_model

LENGTH, ROWS = 40, 2


class Counter(TorchDispatchMode):
    """Torch's own formulas by operator, without FlopCounterMode's hooks on modules, which some of ours do without."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


def prepared(stage: str):
    model, processor = tiny_model()
    add_lora(model, LoraSettings(r=4), name="dpo" if stage == "dpo" else "default")
    set_trainable(model, stage)
    model.model.language_model.set_attn_implementation("eager")  # torch does not see into sdpa on a CPU
    install_response_head(model)
    prompt = processor.encode_prompt("What is heard?", recordings=1)
    ids = torch.tensor([(prompt + list(range(60, 100)))[:LENGTH]] * ROWS)
    labels = ids.clone()
    labels[:, :-10] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return model.train(), batch | {"input_features": torch.rand(ROWS, 64, 218)}


def counted(model, batch, stage: str) -> float:
    with Counter() as counter:
        if stage == "dpo":
            with torch.no_grad(), reference(model):
                model(**batch, fused_lm_head=True)
        (-model(**batch, fused_lm_head=True).log_probs.sum()).backward()
    return counter.total


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_accounting_is_what_torch_counts(stage):
    model, batch = prepared(stage)
    model.model.audio_tower.requires_grad_(False)  # torch counts too much for the backward of grouped convolutions
    costs = step_costs(model, reference=stage == "dpo")
    expected = costs.of(count(batch, ROWS))
    actual = counted(model, batch, stage)
    if stage == "dpo":  # the encoder is frozen: its second run for the reference is not needed, and not in the model
        actual -= audio_alone(model, batch)
    # Without padding the two differ by the gradient of the first layers' inputs and LoRA's own backward.
    assert expected == pytest.approx(actual, rel=0.03)


def audio_alone(model, batch) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model.encode_audio(batch["input_features"])
    return counter.get_total_flops()


def test_an_encoder_that_trains_costs_three_times_its_forward():
    model, batch = prepared("sft")
    training = step_costs(model).recording
    model.model.audio_tower.requires_grad_(False)
    frozen = step_costs(model).recording
    model.model.projector.requires_grad_(False)
    alone = step_costs(model).recording
    assert alone == pytest.approx(audio_alone(model, batch) / ROWS)
    assert training - frozen == pytest.approx(2 * (alone - (frozen - alone) / 2))


def test_alignment_without_captions_runs_no_language_model():
    model, _ = prepared("align")
    costs = step_costs(model, language=False)
    assert costs.token == costs.scored == costs.square == 0 and costs.recording > 0


def test_counting_leaves_the_model_as_it_was():
    model, _ = prepared("sft")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    step_costs(model)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert random.equal(torch.get_rng_state())


def test_costs_are_linear_in_what_a_step_holds():
    costs = Costs(token=2.0, square=0.5, scored=3.0, recording=100.0)
    one = Counts(samples=1, recordings=1, tokens=10, places=16, scored=4, squares=100)
    assert costs.of(one) == 182.0
    assert costs.of(one + one) == 2 * costs.of(one)
    assert costs.of(Counts(places=16)) == 0.0  # padding does no work


def test_a_peak_is_measured():
    assert measured_peak(torch.float32, "cpu", seconds=0.01) > 1e8
