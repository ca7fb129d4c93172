import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from stetholm.errors import UserError
from stetholm.model import add_lora, merge_lora, reference, set_trainable
from stetholm.model.lora import inject_lora
from stetholm.settings import LoraSettings
from tests.model.test_modeling import examples
from tests.model.tiny import lively, tiny_model

DPO = LoraSettings(r=2, alpha=4, dropout=0.0)


def logps(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        sums: torch.Tensor = model.response_logps(**batch)[0]
    return sums


def shaken(model: Any) -> None:
    """Change all that mDPO trains."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)


def test_a_fresh_adapter_changes_nothing_and_sits_on_attention_only(tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path)
    batch = processor.collate(examples(processor))
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"}
    before = logps(model, batch)
    add_lora(model, DPO, "dpo")
    assert torch.equal(logps(model, batch), before)
    assert set(model.config.lora) == {"default", "dpo"}
    with pytest.raises(ValueError, match="already has an adapter 'dpo'"):
        add_lora(model, DPO, "dpo")


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ("align", {"audio_tower", "projector"}),
        ("sft", {"audio_tower", "projector", "lora:default"}),
        ("dpo", {"projector", "lora:dpo"}),
    ],
)
def test_what_trains_in_each_stage(pair: Any, stage: Any, trained: set[str]) -> None:
    model, _ = pair
    add_lora(model, DPO, "dpo")
    set_trainable(model, stage)
    found = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.add(f"lora:{name.split('.')[-2]}" if ".lora_" in name else name.split(".")[1])
    assert found == trained
    assert model.train().model.audio_tower.training == (stage != "dpo")


def test_a_stage_without_its_adapter_is_refused(pair: Any) -> None:
    model, _ = pair
    with pytest.raises(ValueError, match="trains the adapter 'dpo', which the model lacks"):
        set_trainable(model, "dpo")
    with pytest.raises(ValueError, match="no reference projector"), reference(model):
        pass


def test_reference_is_the_policy_before_mdpo_and_leaves_no_trace(pair: Any) -> None:
    model, processor = pair
    batch = processor.collate(examples(processor))
    before = logps(model, batch)
    add_lora(model, DPO, "dpo")
    set_trainable(model, "dpo")
    shaken(model)
    model.train()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with reference(model):
        inside = logps(model, batch)
    assert torch.equal(inside, before)
    after = logps(model, batch)
    assert not torch.allclose(after, before)
    assert model.training and flags == {name: p.requires_grad for name, p in model.named_parameters()}
    model.response_logps(**batch)[0].sum().backward()
    assert model.get_parameter("model.projector.model.0.weight").grad is not None


def test_reference_ends_also_after_an_error(pair: Any) -> None:
    model, processor = pair
    add_lora(model, DPO, "dpo")
    set_trainable(model, "dpo")
    shaken(model)
    batch = processor.collate(examples(processor))
    before = logps(model, batch)
    with pytest.raises(RuntimeError), reference(model):
        raise RuntimeError("inside")
    assert torch.equal(logps(model, batch), before)


def test_merging_several_adapters_keeps_the_outputs(pair: Any) -> None:
    model, processor = pair
    batch = processor.collate(examples(processor))
    add_lora(model, DPO, "dpo")
    set_trainable(model, "dpo")
    shaken(model)
    before = logps(model, batch)
    merged = copy.deepcopy(model)
    merge_lora(merged)
    torch.testing.assert_close(logps(merged, batch), before, rtol=1e-4, atol=1e-4)
    assert not [name for name, _ in merged.named_modules() if "lora" in name]
    assert merged.config.lora is None and merged.config.weights == "full"
    add_lora(merged, DPO)  # a next stage may start from here
    torch.testing.assert_close(logps(merged, batch), before, rtol=1e-4, atol=1e-4)


def test_merged_bfloat16_rounds_each_weight_once(tmp_path: Path) -> None:
    model, _ = tiny_model(tmp_path, dtype=torch.bfloat16)
    lively(model)
    layer = model.model.language_model.layers[0].self_attn.q_proj
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    merge_lora(model)
    assert torch.equal(model.model.language_model.layers[0].self_attn.q_proj.weight, exact.bfloat16())


def test_a_decoder_without_attention_projections_is_refused() -> None:
    with pytest.raises(UserError, match=r"no q_proj.*model.lora.targets"):
        inject_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), "default", {"r": 1, "alpha": 1, "dropout": 0.0})
