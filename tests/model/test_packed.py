from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stetholm.model import merge_lora
from stetholm.model.packed import FrozenLinear, PackedLinear, can_pack, pack, pack_for_training
from tests.model.test_generation import generate, rows
from tests.model.tiny import lively, tiny_model

needs_bf16 = pytest.mark.skipif(not can_pack(), reason="this processor does not multiply bf16 itself")


@needs_bf16
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_computes_what_the_layer_does(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 40, bias=bias).bfloat16()
    packed = PackedLinear(layer)
    with torch.no_grad():
        for shape in [(1, 96), (5, 1, 96), (2, 37, 96), (0, 96)]:
            x = torch.randn(shape).bfloat16()
            exact = nn.functional.linear(
                x.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float()
            )
            assert packed(x).shape == exact.shape and packed(x).dtype == torch.bfloat16
            torch.testing.assert_close(packed(x).float(), exact, rtol=2**-7, atol=2**-7)
        strided = torch.randn(4, 3, 96).bfloat16()[:, -1:]
        torch.testing.assert_close(packed(strided), layer(strided), rtol=2**-7, atol=2**-7)


@needs_bf16
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_a_packed_model_answers(kind: str, tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path, kind, torch.bfloat16)
    merge_lora(lively(model))
    batch = processor.collate(rows(processor), "left")

    def logits() -> torch.Tensor:
        with torch.no_grad():
            made: torch.Tensor = model(**batch).logits
        return made.float()

    before = logits()
    pack(model)
    kinds = {type(module) for module in model.model.language_model.modules()} | {type(model.lm_head)}
    assert nn.Linear not in kinds and PackedLinear in kinds
    assert PackedLinear not in {type(module) for module in model.model.projector.modules()}
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits()[real], before[real], rtol=0, atol=0.05 * float(before.abs().max()))
    assert len(generate(model, batch, num_beams=2)) == 3


def test_float32_is_left_alone(pair: Any) -> None:
    model, _ = pair
    pack(model)
    assert not [module for module in model.modules() if isinstance(module, PackedLinear)]


@needs_bf16
@pytest.mark.parametrize("bias", [True, False])
def test_a_frozen_layer_gives_the_layers_product_and_gradient(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(96, 40, bias=bias).bfloat16().requires_grad_(False))
    x = torch.randn(2, 37, 96, dtype=torch.bfloat16, requires_grad=True)

    def product_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        x.grad = None
        product = layer(x)
        product.float().square().sum().backward()
        assert x.grad is not None
        return product.detach().clone(), x.grad.clone()

    for change in (1, 2):  # what was packed follows the weight
        with torch.no_grad():
            layer[0].weight.mul_(change)
        layer[0].__class__ = nn.Linear
        expected = product_and_gradient()
        pack_for_training(layer)
        assert type(layer[0]) is FrozenLinear
        for ours, theirs in zip(product_and_gradient(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-6 * float(theirs.abs().max()))


@needs_bf16
def test_a_layer_that_trains_and_one_without_room_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Sequential(nn.Linear(8, 8).bfloat16())
    pack_for_training(layer)
    layer(torch.randn(3, 8).bfloat16()).sum().backward()
    assert layer[0].weight.grad is not None
    monkeypatch.setattr("stetholm.model.packed.TRAINING_ROOM", 100)
    other = nn.Sequential(nn.Linear(8, 8).bfloat16())
    pack_for_training(other)
    assert type(other[0]) is nn.Linear
