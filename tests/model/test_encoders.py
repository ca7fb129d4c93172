import copy
from typing import Any

import pytest
import torch
from transformers import ASTConfig, ClapAudioConfig

from stetholm.model.encoders import ENCODERS, ColaEncoder, build_encoder, encoder_class
from stetholm.model.encoders.cola import FloatBatchNorm2d
from tests.model.tiny import tiny_encoder_config

SMALL: dict[str, Any] = {
    "cola": tiny_encoder_config,
    "ast": lambda: ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_length=218,
        num_mel_bins=64,
    ),
    "clap": lambda: ClapAudioConfig(
        patch_embeds_hidden_size=16, depths=[1, 1], num_attention_heads=[2, 2], hidden_size=32, projection_dim=24
    ),
}
WIDTHS = {"cola": 320, "ast": 32, "clap": 24}


@pytest.mark.parametrize("name", sorted(ENCODERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_encoder_pools_a_clip_to_its_width(name: str, dtype: torch.dtype) -> None:
    encoder = build_encoder(name, SMALL[name]()).to(dtype)
    pooled = encoder(torch.rand(3, 64, 218, dtype=dtype))
    assert pooled.shape == (3, WIDTHS[name]) and encoder.width == WIDTHS[name]
    assert pooled.dtype == dtype and torch.isfinite(pooled).all()
    pooled.float().square().sum().backward()


def test_ast_of_another_size_stretches_the_spectrogram() -> None:
    config = SMALL["ast"]()
    config.max_length, config.num_mel_bins = 256, 128
    assert build_encoder("ast", config)(torch.rand(1, 64, 218)).shape == (1, 32)


def test_published_sizes() -> None:
    assert encoder_class("cola").default_config().hidden_dim == 1280
    assert encoder_class("ast").default_config().hidden_size == 768
    assert encoder_class("clap").default_config().projection_dim == 1024
    with pytest.raises(ValueError, match="ast, clap, cola"):
        encoder_class("mel")


def test_b0_trains_from_scratch() -> None:
    """The features of a fresh B0 differ between clips, as they would not with transformers' gamma near 0."""
    torch.manual_seed(0)
    encoder = ColaEncoder(ColaEncoder.default_config()).train()
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(4.0e6, rel=0.01)
    assert encoder(torch.rand(4, 64, 218)).std(dim=0).mean() > 0.05
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {n.momentum for n in norms} == {0.1} and all(torch.equal(n.weight, torch.ones_like(n.weight)) for n in norms)


def test_float_batch_norm_equals_torchs() -> None:
    ours, theirs = FloatBatchNorm2d(3, momentum=0.1), torch.nn.BatchNorm2d(3, momentum=0.1)
    for step in range(3):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_statistics_stay_float32_and_exact_in_a_bfloat16_model() -> None:
    encoder = ColaEncoder(tiny_encoder_config()).train()
    encoder(torch.rand(4, 64, 218))
    cast = copy.deepcopy(encoder).bfloat16()
    before, after = dict(encoder.named_buffers()), dict(cast.named_buffers())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {p.dtype for p in cast.parameters()} == {torch.bfloat16}
    cast.train()(torch.rand(4, 64, 218).bfloat16())
    assert any(not torch.equal(before[name], after[name]) for name in before), "they still move"
