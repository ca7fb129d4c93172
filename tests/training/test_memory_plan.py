"""The calculator against what autograd keeps and what the models weigh."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3ForCausalLM

from stetholm.errors import UserError
from stetholm.model.lora import inject_lora
from stetholm.settings import Settings, load_settings
from stetholm.training.memory_plan import (
    MEDGEMMA_4B,
    Decoder,
    Encoder,
    decoder_of,
    kept_bytes,
    load_of,
    main,
    plan_for,
    table,
)

PRESETS = sorted((Path(__file__).parents[2] / "platform/stetholm/presets").glob("medgemma-*.yaml"))
SIZE = {
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}


def decoder(kind: str, layers: int, attention: str):
    """A random language model of which only an adapter trains."""
    config = {"llama": LlamaConfig, "gemma3": Gemma3TextConfig}[kind](
        **SIZE, num_hidden_layers=layers, tie_word_embeddings=True, attn_implementation=attention
    )
    model = {"llama": LlamaForCausalLM, "gemma3": Gemma3ForCausalLM}[kind](config).to(torch.bfloat16)
    model.requires_grad_(False)
    inject_lora(model.model, "default", {"r": 8, "alpha": 16, "dropout": 0.1})
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return model.train()


def counted(kind: str, layers: int, attention: str = "eager", checkpointing: bool = False) -> int:
    model = decoder(kind, layers, attention)
    if checkpointing:
        model.model.gradient_checkpointing_enable({"use_reentrant": False})
    embeds = torch.randn(4, 48, SIZE["hidden_size"], dtype=torch.bfloat16, requires_grad=True)
    mask = torch.ones(4, 48, dtype=torch.long)
    return kept_bytes(
        lambda: model.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state,
        model.parameters(),
    )


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_what_a_layer_keeps(kind):
    layer = counted(kind, 3) - counted(kind, 2)
    sizes = Decoder.of(decoder(kind, 2, "eager").config)
    planned = sizes.kept(2, rank=8, length=48, dropout=True, fused=False) * 4 * 48
    assert planned == pytest.approx(layer, rel=0.08)


def test_with_checkpoints_a_layer_keeps_one_state():
    layer = counted("llama", 3, checkpointing=True) - counted("llama", 2, checkpointing=True)
    assert layer == pytest.approx(2 * SIZE["hidden_size"] * 4 * 48, rel=0.08)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_weights_are_those_of_the_model(kind):
    model = decoder(kind, 2, "eager")
    sizes = Decoder.of(model.config)
    count = {
        trains: sum(p.numel() for p in model.parameters() if p.requires_grad is trains) for trains in (False, True)
    }
    assert sizes.parameters == pytest.approx(count[False], rel=2e-3)  # less the final norm and those of heads
    assert sizes.lora(8) == count[True]


def test_medgemma_is_gemma_3_of_4_billion():
    assert decoder_of("google/medgemma-4b-it") is MEDGEMMA_4B
    assert 3.8e9 < MEDGEMMA_4B.parameters < 4.0e9


def test_the_encoder_is_counted_and_kept_by_the_recording():
    encoder = Encoder.count("cola")
    assert encoder.width == 1280
    assert 4.0e6 < encoder.weights < 4.1e6
    assert encoder.kept > 2**20


def need(**train):
    base = {"workers": 8, "use_gpu": True, "batch_size": 2}
    settings = Settings.model_validate(
        {"model": {"language_model": "google/medgemma-4b-it"}, "train": {**base, **train}}
    )
    return plan_for(settings, "sft").need()


def test_what_zero_shares_out():
    plain, optimizer, gradients, weights = (need(zero_stage=stage) for stage in range(4))
    assert optimizer.optimizer == pytest.approx(plain.optimizer * 12 / 8 / 8)
    assert gradients.gradients == pytest.approx(plain.gradients / 8)
    assert weights.frozen_weights == pytest.approx(plain.frozen_weights / 8)
    assert plain.total > optimizer.total > gradients.total > weights.total


def test_what_is_offloaded_is_on_the_host():
    before, optimizer, everything = (need(zero_stage=3, offload=offload) for offload in ("none", "optimizer", "all"))
    assert before.host == 0 < optimizer.host < everything.host
    assert before.total > optimizer.total > everything.total
    assert everything.frozen_weights == everything.trained_weights == 0


def test_batches_of_tokens_are_planned_full():
    settings = Settings.model_validate({"train": {"tokens_per_batch": 1056}})
    assert load_of(settings.stage("sft"), "sft", 132, 64).sequences == 8
    pairs = load_of(settings.stage("dpo"), "dpo", 132, 64)
    assert (pairs.sequences, pairs.recordings) == (6, 4)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", ["align", "sft", "dpo"])
def test_presets_are_valid_and_fit_into_24_gib(preset, stage):
    settings = load_settings(preset, environ={})
    assert settings.stage(stage).workers == 1 or "1-gpu" not in preset.stem
    plan = plan_for(settings, stage)
    assert plan.need().total * 1.2 + 2**30 < 24 * 2**30
    assert f"{plan.need().total / 2**30:.2f} GiB" in table(plan)


def test_there_are_presets_for_1_8_and_64():
    workers = {load_settings(preset, environ={}).stage("sft").workers for preset in PRESETS}
    assert workers == {1, 8, 64}


def test_from_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["memory_plan", "--config", str(PRESETS[0]), "--stage", "sft"])
    main()
    assert "ZeRO 3, offload all" in capsys.readouterr().out


def test_an_unknown_language_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"model\.language_model=.*nowhere"):
        decoder_of(str(tmp_path / "nowhere"))
