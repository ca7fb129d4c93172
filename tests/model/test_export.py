import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, Gemma3Config, Gemma3ForConditionalGeneration

from stetholm.errors import UserError
from stetholm.model import (
    StethoLMForConditionalGeneration,
    StethoLMModel,
    StethoLMProcessor,
    add_lora,
    load_checkpoint,
    save_checkpoint,
)
from stetholm.model.export import export_model
from stetholm.runs import record, run_uri
from stetholm.settings import LoraSettings, Settings
from stetholm.storage import Storage
from tests.model.test_checkpoint import same
from tests.model.test_modeling import examples
from tests.model.tiny import TEXT_CONFIGS, lively, tiny_base, tiny_model, tiny_tokenizer

LINEAGE = {"stage": "dpo", "run": "exported", "parent": None, "corpus": "s3://b/c", "corpus_sha256": "c0ffee"}


def make(folder: Path, base: Path, adapters: int = 2, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint as training leaves it: encoder, projector and adapters, their weights in float32."""
    model, processor = tiny_model(base, dtype=dtype)
    if adapters == 2:
        add_lora(model, LoraSettings(r=2, alpha=6, dropout=0.0), "dpo")
    lively(model)
    state = {key: value.float() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    for key, value in state.items():
        if ".lora_" in key:
            state[key] = value + torch.randn_like(value) * 1e-3  # what bfloat16 could not hold
    save_checkpoint(model, processor, folder, state_dict=state)
    (folder / "lineage.json").write_text(json.dumps(LINEAGE))
    (folder / "settings.yaml").write_text("run: {name: exported}\n")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("export-base"))


@pytest.fixture(scope="module")
def checkpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters over a base in bfloat16."""
    return make(tmp_path_factory.mktemp("export"), base, dtype=torch.bfloat16)


def chosen(checkpoint: Path | str, run: str = "exported", **export: Any) -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": run},
            "model": {"init_from": str(checkpoint)},
            "export": {k: str(v) for k, v in export.items()},
        }
    )


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def logits(model: Any, processor: Any) -> torch.Tensor:
    batch = processor.collate(examples(processor))
    del batch["labels"]
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found


def test_merged_loads_without_base_and_adapters_and_answers_alike(storage: Storage, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    source = make(tmp_path / "checkpoint", base)
    expected, processor = load_checkpoint(source, merge=True)
    adapted, _ = load_checkpoint(source)
    result = export_model(chosen(source, to=tmp_path / "out" / "merged"), storage)
    shutil.rmtree(base)
    shutil.rmtree(source)
    assert result["output"] == str(tmp_path / "out" / "merged") and result["dtype"] == "float32"
    assert result["parameters"] == sum(p.numel() for p in expected.parameters())
    folder = Path(result["output"])
    assert {"README.md", "config.json", "export.json", "lineage.json", "settings.yaml"} <= written(folder).keys()
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert not [key for key in load_file(folder / "model.safetensors") if ".lora_" in key or "base_layer" in key]
    model = StethoLMForConditionalGeneration.from_pretrained(folder)
    assert same(model, expected) and model.config.lora is None and model.config.weights == "full"
    assert same(AutoModelForCausalLM.from_pretrained(folder), expected)
    assert isinstance(AutoModel.from_pretrained(folder), StethoLMModel)
    again = AutoProcessor.from_pretrained(folder)
    assert again.encode_pair("Is it?", "Yes", 1) == processor.encode_pair("Is it?", "Yes", 1)
    torch.testing.assert_close(logits(model, again), logits(adapted, processor), rtol=1e-4, atol=1e-4)
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()


def test_to_storage_by_default_and_nothing_is_done_twice(storage: Storage, checkpoint: Path) -> None:
    source = storage.join("runs", "exported", "dpo", "checkpoint")
    storage.upload_dir(checkpoint, source)
    settings = chosen(source)
    result = export_model(settings, storage)
    assert result["output"] == run_uri(settings, storage, "export", "merged") and result["checkpoint"] == source
    assert same(
        StethoLMForConditionalGeneration.from_pretrained(result["output"]), load_checkpoint(source, merge=True)[0]
    )
    before = storage.written(result["output"])
    assert export_model(settings, storage) == result
    assert storage.written(result["output"]) == before
    other = export_model(chosen(source, dtype="float32"), storage)
    assert other["output"] == f"{result['output']}-float32" and other["bytes"] > 1.8 * result["bytes"]
    card = storage.read_text(f"{result['output']}/README.md")
    assert f"source = '{result['output']}'" in card and "Not evaluated" in card and "c0ffee" in card


def test_a_broken_export_is_no_checkpoint_and_is_taken_up_again(
    storage: Storage, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = storage.join("test-export", "broken")

    def half(self: Storage, local: Path, uri: str) -> None:
        self.write_bytes(f"{uri}/model.safetensors", b"the beginning")
        raise ConnectionError("cut")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "upload_dir", half)
        with pytest.raises(ConnectionError):
            export_model(chosen(checkpoint, to=to), storage)
    with pytest.raises(UserError, match=r"no config.json"):
        StethoLMForConditionalGeneration.from_pretrained(to)
    export_model(chosen(checkpoint, to=to), storage)
    assert same(StethoLMForConditionalGeneration.from_pretrained(to), load_checkpoint(checkpoint, merge=True)[0])


def test_a_failed_export_leaves_nothing_behind(storage: Storage, checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    for kind in ("merged", "adapter"):
        with pytest.raises(UserError, match="damaged or cut short"):
            export_model(chosen(source, to=tmp_path / "out" / "x", kind=kind), storage)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float32"])
def test_merging_rounds_each_weight_once(
    storage: Storage, checkpoint: Path, base: Path, tmp_path: Path, dtype: str
) -> None:
    result = export_model(chosen(checkpoint, to=tmp_path / "m", dtype=dtype), storage)
    expected = torch.float32 if dtype == "float32" else torch.bfloat16
    assert result["dtype"] == str(expected).removeprefix("torch.")
    state, own = load_file(tmp_path / "m" / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    types = {value.dtype for key, value in state.items() if value.is_floating_point() and "running_" not in key}
    assert types == {expected}
    assert {value.dtype for key, value in state.items() if "running_" in key} == {torch.float32}
    name = "model.language_model.layers.0.self_attn.q_proj"
    exact = AutoModelForCausalLM.from_pretrained(base, dtype=expected).model.layers[0].self_attn.q_proj.weight.float()
    for adapter, scale in (("default", 2.0), ("dpo", 3.0)):
        exact = exact + scale * own[f"{name}.lora_B.{adapter}.weight"] @ own[f"{name}.lora_A.{adapter}.weight"]
    if dtype == "float32":
        torch.testing.assert_close(state[f"{name}.weight"], exact, rtol=1e-6, atol=1e-6)
    else:
        differing = (state[f"{name}.weight"] != exact.bfloat16()).float().mean()
        assert differing < 0.002, "but for sums at the edge between two bfloat16 numbers"


@pytest.mark.parametrize("adapters", [1, 2])
def test_the_adapter_alone(storage: Storage, base: Path, tmp_path: Path, adapters: int) -> None:
    source = make(tmp_path / "checkpoint", base, adapters)
    result = export_model(chosen(source, to=tmp_path / "a", kind="adapter"), storage)
    whole = export_model(chosen(source, to=tmp_path / "m"), storage)
    assert result["bytes"] < whole["bytes"] and result["parameters"] < whole["parameters"]
    kept = load_file(tmp_path / "a" / "model.safetensors")
    assert kept.keys() == load_file(source / "model.safetensors").keys()
    expected, processor = load_checkpoint(source)
    model = StethoLMForConditionalGeneration.from_pretrained(tmp_path / "a")
    assert same(model, expected) and len(model.config.lora) == adapters
    assert StethoLMProcessor.from_pretrained(tmp_path / "a").encode_prompt("Hi", 1) == processor.encode_prompt("Hi", 1)

    ids = torch.tensor([processor.encode_prompt("Is it normal?", 0)])
    bare = AutoModelForCausalLM.from_pretrained(base)
    before = bare(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(bare, str(tmp_path / "a" / "lora"))
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=ids).logits, expected(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(adapted(input_ids=ids).logits, before, atol=1e-2)
    config = json.loads((tmp_path / "a" / "lora" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert "PeftModel.from_pretrained" in (tmp_path / "a" / "README.md").read_text()


def test_an_adapter_in_another_type(storage: Storage, checkpoint: Path, tmp_path: Path) -> None:
    result = export_model(chosen(checkpoint, to=tmp_path / "a", kind="adapter", dtype="bfloat16"), storage)
    model = StethoLMForConditionalGeneration.from_pretrained(tmp_path / "a")
    assert result["dtype"] == "bfloat16" and model.dtype == torch.bfloat16
    assert same(model, load_checkpoint(checkpoint, dtype=torch.bfloat16)[0])


def test_the_adapter_of_a_model_that_sees_too(storage: Storage, tmp_path: Path) -> None:
    """MedGemma's class: its decoder lies deeper, and its vision tower has projections of the same names."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**TEXT_CONFIGS["gemma3"]().to_dict(), "final_logit_softcapping": None}
    whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28}))
    whole.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    source = make(tmp_path / "checkpoint", tmp_path / "base")
    export_model(chosen(source, to=tmp_path / "a", kind="adapter"), storage)
    expected, processor = load_checkpoint(source)
    ids = torch.tensor([processor.encode_prompt("Is it normal?", 0)])
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = PeftModel.from_pretrained(bare, str(tmp_path / "a" / "lora"))
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=ids).logits, expected(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def refused(settings: Settings, storage: Storage) -> str:
    with pytest.raises(UserError) as error:
        export_model(settings, storage)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_destination_that_holds_something_else_is_left_alone(
    storage: Storage, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "holds other files (e.g. notes.txt)" in refused(chosen(checkpoint, to=tmp_path / "mine"), storage)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert "is a file" in refused(chosen(checkpoint, to=tmp_path / "mine" / "notes.txt"), storage)
    assert "cannot write" in refused(chosen(checkpoint, to=tmp_path / "mine" / "notes.txt" / "below"), storage)
    assert "holds other files" in refused(chosen(checkpoint, to=checkpoint), storage)

    uri = storage.join("test-export", "taken")
    storage.write_text(f"{uri}/notes.txt", "mine")
    assert "holds other files (e.g. notes.txt)" in refused(chosen(checkpoint, to=uri), storage)

    (tmp_path / "empty").mkdir()
    export_model(chosen(checkpoint, to=tmp_path / "empty"), storage)
    before = written(tmp_path / "empty")
    assert "holds another export" in refused(chosen(checkpoint, to=tmp_path / "empty", kind="adapter"), storage)
    assert written(tmp_path / "empty") == before


def test_what_cannot_be_exported_is_said(storage: Storage, checkpoint: Path, tmp_path: Path) -> None:
    export_model(chosen(checkpoint, to=tmp_path / "m"), storage)
    assert "export.kind=merged" in refused(chosen(tmp_path / "m", to=tmp_path / "a", kind="adapter"), storage)
    assert "no checkpoint at" in refused(chosen(tmp_path / "nothing", to=tmp_path / "b"), storage)
    none = Settings.model_validate({"run": {"name": "never-trained"}})
    assert "has no finished checkpoint" in refused(none, storage)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_later_evaluation_enters_the_card_and_nothing_else_is_written(
    storage: Storage, checkpoint: Path, tmp_path: Path
) -> None:
    settings = chosen(checkpoint, run="exported-twice", to=tmp_path / "m")
    export_model(settings, storage)
    assert "Not evaluated" in (tmp_path / "m" / "README.md").read_text()
    weights = (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns
    output = run_uri(settings, storage, "evaluate")
    record(settings, storage, "evaluate", {"output": output}, {"checkpoint": "s3://another/one"})
    storage.write_text(f"{output}/table.md", "| Overall, audio withheld | 9 |\n")
    export_model(settings, storage)
    assert "Not evaluated" in (tmp_path / "m" / "README.md").read_text(), "that was another checkpoint's table"
    record(settings, storage, "evaluate", {"output": output}, {"checkpoint": str(checkpoint)})
    export_model(settings, storage)
    assert "| Overall, audio withheld | 9 |" in (tmp_path / "m" / "README.md").read_text()
    before = written(tmp_path / "m")
    export_model(settings, storage)
    assert written(tmp_path / "m") == before and before["model.safetensors"] == weights


def test_the_code_in_the_card_runs(
    storage: Storage,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export_model(chosen(checkpoint, to=tmp_path / "m"), storage)
    (code,) = re.findall(r"```python\n(.+?)```", (tmp_path / "m" / "README.md").read_text(), flags=re.DOTALL)
    soundfile.write(tmp_path / "m" / "recording.wav", np.sin(np.arange(16_000) * 0.05), 16_000)
    monkeypatch.chdir(tmp_path / "m")
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n")


def test_an_export_can_be_exported_and_its_ancestors_are_named(
    storage: Storage, checkpoint: Path, tmp_path: Path
) -> None:
    parent, child = storage.join("test-export", "parent"), tmp_path / "child"
    storage.upload_dir(checkpoint, parent)
    shutil.copytree(checkpoint, child)
    (child / "lineage.json").write_text(json.dumps({**LINEAGE, "parent": parent}))
    export_model(chosen(child, to=tmp_path / "m"), storage)
    lines = (tmp_path / "m" / "README.md").read_text().split("## Lineage")[1]
    assert lines.index("exported (merged)") < lines.index(f"`{child}`") < lines.index(f"`{parent}`")
    export_model(chosen(tmp_path / "m", to=tmp_path / "again", dtype="float32"), storage)
    assert load_checkpoint(tmp_path / "again")[0].dtype == torch.float32
