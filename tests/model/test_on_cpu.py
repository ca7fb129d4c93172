"""A decoder's forms for training on a CPU against transformers' own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stetholm.model.on_cpu import PLAIN, train_on_cpu
from tests.model.test_generation import rows
from tests.model.tiny import lively, tiny_model


def hidden_and_gradient(decoder: Any, embeds: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    given = embeds.clone().requires_grad_()
    hidden = decoder(inputs_embeds=given, attention_mask=mask, use_cache=False).last_hidden_state
    (hidden * mask[..., None]).float().square().sum().backward()
    assert given.grad is not None
    return hidden * mask[..., None], given.grad


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen2", "qwen3"])
def test_states_and_gradients_are_transformers_own(kind: str, tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path, kind)
    lively(model)
    decoder = model.model.language_model.eval().requires_grad_(False)
    batch = processor.collate(rows(processor), "right")
    torch.manual_seed(0)
    embeds = torch.randn(*batch["input_ids"].shape, decoder.config.hidden_size)
    decoder.set_attn_implementation("eager")
    expected = hidden_and_gradient(decoder, embeds, batch["attention_mask"])
    train_on_cpu(decoder)
    assert decoder.config._attn_implementation == PLAIN
    for ours, theirs in zip(hidden_and_gradient(decoder, embeds, batch["attention_mask"]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_norm_still_learns_its_weight(pair: Any) -> None:
    decoder = pair[0].model.language_model.requires_grad_(True)
    x = torch.randn(2, 3, decoder.config.hidden_size)
    expected = decoder.norm(x)
    train_on_cpu(decoder)
    out = decoder.norm(x)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert decoder.norm.weight.grad is not None and decoder.norm.weight.grad.abs().sum() > 0
