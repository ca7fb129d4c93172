"""The language model alone, as an engine loads it."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from stetholm.model import export_language
from stetholm.model.export_language import cached_language_model
from stetholm.model.lora import add_lora
from stetholm.settings import LoraSettings
from tests.serving.tiny import tiny_model

EOS = frozenset({256})


def test_it_computes_what_the_whole_model_computes_on_embeddings():
    model, _ = tiny_model()
    folder = cached_language_model(model, EOS)
    alone = AutoModelForCausalLM.from_pretrained(folder).eval()
    embeds = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(alone(inputs_embeds=embeds).logits, model(inputs_embeds=embeds).logits)
    assert alone.generation_config.eos_token_id == [256]


def test_it_is_written_once_and_again_when_a_weight_changes():
    model, _ = tiny_model(seed=3)
    folder = cached_language_model(model, EOS)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert cached_language_model(model, EOS) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert cached_language_model(model, EOS) != folder


def test_old_ones_are_removed_when_nobody_can_be_reading_them(monkeypatch):
    monkeypatch.setattr(export_language, "KEPT", 1)
    monkeypatch.setattr(export_language, "RECENT", -1.0)
    first = cached_language_model(tiny_model(seed=4)[0], EOS)
    second = cached_language_model(tiny_model(seed=5)[0], EOS)
    assert second.exists() and not first.exists()


def test_adapters_must_be_merged_first():
    model, _ = tiny_model()
    add_lora(model, LoraSettings())
    with pytest.raises(ValueError, match="merge"):
        cached_language_model(model, EOS)
