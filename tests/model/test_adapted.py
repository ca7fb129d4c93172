"""Our LoRA layer against PEFT's own."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from stetholm.model.adapted import AdaptedLinear, drop
from stetholm.model.lora import inject_lora, lora_layers


class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.ModuleDict({"q_proj": nn.Linear(32, 24)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attention["q_proj"](x)
        return out


def adapted(ours: bool, dropout: float = 0.0) -> Any:
    model = Projection()
    if ours:
        inject_lora(model, "default", {"r": 4, "alpha": 8, "dropout": dropout})
    else:
        config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj"])
        inject_adapter_in_model(config, model, adapter_name="default")
    (layer,) = lora_layers(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for half in (layer.lora_A, layer.lora_B):
            half["default"].weight.copy_(torch.randn(half["default"].weight.shape, generator=generator))
    return model


def test_outputs_and_gradients_are_pefts() -> None:
    x = torch.randn(3, 5, 32)
    outputs, gradients = [], []
    for ours in (True, False):
        model, (layer,) = (model := adapted(ours)), lora_layers(model)
        assert isinstance(layer, AdaptedLinear) == ours
        out = model(x)
        out.square().sum().backward()
        outputs.append(out)
        gradients.append([half["default"].weight.grad for half in (layer.lora_A, layer.lora_B)])
    torch.testing.assert_close(*outputs)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_bf16_activations_stay_bf16_and_the_weights_learn_in_fp32() -> None:
    model = adapted(True)
    (layer,) = lora_layers(model)
    layer.base_layer.to(torch.bfloat16)
    halves: list[str] = []
    for half in (layer.lora_A, layer.lora_B):
        half["default"].register_forward_hook(lambda _, given, out: halves.append(f"{given[0].dtype} {out.dtype}"))
    out = model(torch.randn(2, 32).bfloat16())
    out.sum().backward()
    assert out.dtype == torch.bfloat16 and halves == ["torch.bfloat16 torch.bfloat16"] * 2
    assert layer.lora_A["default"].weight.dtype == layer.lora_A["default"].weight.grad.dtype == torch.float32


def test_only_an_adapter_that_trains_has_dropout() -> None:
    model, x = adapted(True, dropout=0.5), torch.randn(4, 32)
    assert not torch.equal(model(x), model(x))
    model.requires_grad_(False)
    frozen = model(x)
    assert torch.equal(frozen, model(x)) and torch.equal(frozen, model.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=20, deadline=None)
@given(rate=st.floats(0.0, 0.95), odd=st.integers(0, 7), seed=st.integers(0, 99))
def test_what_is_dropped_is_zero_and_the_rest_is_as_it_was(dtype: Any, rate: float, odd: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(999 + odd, dtype=dtype).requires_grad_()
    dropped = drop(x, rate)
    kept = dropped != 0
    assert torch.equal(dropped[kept], x[kept])
    assert abs(float(kept.float().mean()) - (1 - rate)) < 0.09
    dropped.sum().backward()
    assert x.grad is not None and torch.equal(x.grad != 0, kept | ((x == 0) & (x.grad != 0)))


def test_the_same_seed_drops_the_same() -> None:
    x = torch.randn(100)
    first, second = (drop(x, 0.5) for _ in range(2) if torch.manual_seed(3))
    assert torch.equal(first, second) and not torch.equal(first, x)
