"""PEFT on our class, as a user of Hugging Face has it: nothing of ours is called but the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model

from stetholm.errors import UserError
from stetholm.model import StethoLMForConditionalGeneration, StethoLMProcessor, merge_lora
from tests.model.test_generation import generate, rows
from tests.model.test_modeling import examples
from tests.model.tiny import lively, tiny_model

OURS = LoraConfig(
    r=2,
    lora_alpha=4,
    target_modules=r".*language_model.*\.(q_proj|v_proj)",
    modules_to_save=["projector"],
    task_type=TaskType.CAUSAL_LM,
)
LANGUAGE_ONLY = LoraConfig(r=2, lora_alpha=4, target_modules=r".*language_model.*\.(q_proj|v_proj)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model on disk, without adapters."""
    model, processor = tiny_model(tmp_path / "base")
    merge_lora(lively(model))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def fresh(folder: Path) -> StethoLMForConditionalGeneration:
    model: StethoLMForConditionalGeneration = StethoLMForConditionalGeneration.from_pretrained(folder)
    return model


def scored(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return logits


def trained(model: Any, batch: dict[str, Any]) -> Any:
    """One large step of what trains."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_peft_model_trains_saves_loads_and_generates(folder: Path, tmp_path: Path) -> None:
    processor = StethoLMProcessor.from_pretrained(folder)
    batch = processor.collate(examples(processor))
    before = scored(fresh(folder), batch)
    wrapped = get_peft_model(fresh(folder), OURS)
    names = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert names and all("lora_" in name or "projector" in name for name in names)
    after = scored(trained(wrapped, batch), batch)
    assert not torch.allclose(after, before, atol=1e-3)
    wrapped.save_pretrained(str(tmp_path / "peft"))
    again = PeftModel.from_pretrained(fresh(folder), str(tmp_path / "peft")).eval()
    assert torch.equal(scored(again, batch), after)
    prompts = processor.collate(rows(processor), "left")
    for how in ({}, {"num_beams": 2, "num_return_sequences": 2}, {"do_sample": True}):
        assert generate(again, prompts, **how) == generate(wrapped, prompts, **how)
    merged = again.merge_and_unload()
    assert isinstance(merged, StethoLMForConditionalGeneration)
    torch.testing.assert_close(scored(merged, batch), after, rtol=1e-4, atol=1e-4)


def test_add_save_and_load_adapter_of_the_class_itself(folder: Path, tmp_path: Path) -> None:
    processor = StethoLMProcessor.from_pretrained(folder)
    batch = processor.collate(examples(processor))
    model = fresh(folder)
    model.add_adapter(LANGUAGE_ONLY)
    after = scored(trained(model, batch), batch)
    model.save_pretrained(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    again = fresh(folder)
    before = scored(again, batch)
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(scored(again, batch), after)
    again.disable_adapters()
    assert torch.equal(scored(again, batch), before)
    with pytest.raises(UserError, match=r"a PEFT adapter alone: load its base, then model.load_adapter"):
        fresh(tmp_path / "adapter")
