import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from stetholm.errors import UserError
from stetholm.model import (
    StethoLMConfig,
    StethoLMForConditionalGeneration,
    StethoLMModel,
    StethoLMProcessor,
    add_lora,
    load_checkpoint,
    merge_lora,
    save_checkpoint,
    set_trainable,
)
from stetholm.model.checkpoint import load_own_weights
from stetholm.model.fresh import assemble, build_processor
from stetholm.model.language import prepare_tokenizer
from stetholm.settings import LoraSettings, StorageSettings
from tests.model.test_modeling import examples
from tests.model.tiny import (
    TEXT_CONFIGS,
    lively,
    tiny_base,
    tiny_encoder_config,
    tiny_model,
    tiny_settings,
    tiny_tokenizer,
)


def same(first: Any, second: Any) -> bool:
    """Same names, same types, same bits."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted(TEXT_CONFIGS))
def test_adapter_and_merged_round_trips_are_bit_equal(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path / "base", kind, dtype)
    lively(model)
    save_checkpoint(model, processor, tmp_path / "adapter")
    kept = load_file(tmp_path / "adapter" / "model.safetensors")
    assert not [key for key in kept if "language_model" in key and ".lora_" not in key], "the base is left out"
    again, _ = load_checkpoint(tmp_path / "adapter")
    assert same(model, again) and not again.training and again.dtype == dtype
    merge_lora(again)
    save_checkpoint(again, processor, tmp_path / "merged")
    merged, _ = load_checkpoint(tmp_path / "merged")
    assert same(again, merged)
    assert merged.model.language_model.config._attn_implementation == "sdpa"
    batch = processor.collate(examples(processor))
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).loss, merged(**batch).loss, rtol=1e-6, atol=1e-6)


def test_auto_classes(tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path / "base")
    save_checkpoint(lively(model), processor, tmp_path / "adapter")
    merge_lora(model)
    save_checkpoint(model, processor, tmp_path / "merged")
    for folder in (tmp_path / "adapter", tmp_path / "merged"):
        assert isinstance(AutoConfig.from_pretrained(folder), StethoLMConfig)
        assert isinstance(AutoProcessor.from_pretrained(folder), StethoLMProcessor)
        for auto in (AutoModelForCausalLM, AutoModelForMultimodalLM):
            assert isinstance(auto.from_pretrained(folder), StethoLMForConditionalGeneration)
        inner = AutoModel.from_pretrained(folder)
        assert isinstance(inner, StethoLMModel)
    assert same(inner, model.model)


def test_the_headless_class_saves_what_the_whole_can_load(tmp_path: Path) -> None:
    model, _ = tiny_model(tmp_path / "base")
    lively(model).model.save_pretrained(tmp_path / "inner")
    assert same(StethoLMForConditionalGeneration.from_pretrained(tmp_path / "inner"), model)


def test_generation_settings_are_kept(tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path / "base")
    save_checkpoint(model, processor, tmp_path / "adapter")
    again, _ = load_checkpoint(tmp_path / "adapter")
    assert again.generation_config.to_dict() == model.generation_config.to_dict()


def test_two_adapters_and_the_reference_projector(tmp_path: Path) -> None:
    """An mDPO checkpoint holds both adapters, and never the frozen copy of the projector."""
    model, processor = tiny_model(tmp_path / "base")
    lively(model)
    add_lora(model, LoraSettings(r=2, alpha=4, dropout=0.0), "dpo")
    set_trainable(model, "dpo")
    save_checkpoint(model, processor, tmp_path / "dpo")
    again, _ = load_checkpoint(tmp_path / "dpo", merge=False)
    assert set(again.config.lora) == {"default", "dpo"}
    model.model.reference_projector = None
    assert same(model, again)
    batch = processor.collate(examples(processor))
    with torch.no_grad():
        assert torch.equal(model(**batch).loss, again(**batch).loss)


def test_weights_gathered_by_a_trainer(tmp_path: Path) -> None:
    """Float32 masters of a bfloat16 model are written as they are; what is missing is an error."""
    model, processor = tiny_model(tmp_path / "base", dtype=torch.bfloat16)
    gathered = {key: value.float() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_checkpoint(model, processor, tmp_path / "a", state_dict=gathered)
    assert {v.dtype for v in load_file(tmp_path / "a" / "model.safetensors").values()} == {torch.float32, torch.int64}
    assert load_checkpoint(tmp_path / "a")[0].dtype == torch.bfloat16
    assert load_checkpoint(tmp_path / "a", dtype=torch.float32)[0].dtype == torch.float32
    del gathered["model.projector.model.0.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 weights, e.g. model.projector.model.0.weight"):
        save_checkpoint(model, processor, tmp_path / "b", state_dict=gathered)


def test_a_model_without_a_base_saves_everything_with_its_adapters(tmp_path: Path) -> None:
    config = StethoLMConfig(
        audio_config=tiny_encoder_config(),
        text_config=TEXT_CONFIGS["llama"](),
        lora={"default": {"r": 2, "alpha": 4, "dropout": 0.0}},
    )
    model = lively(StethoLMForConditionalGeneration(config))
    model.save_pretrained(tmp_path)
    assert same(StethoLMForConditionalGeneration.from_pretrained(tmp_path), model)


def test_the_text_part_of_gemma3_for_conditional_generation(tmp_path: Path) -> None:
    """MedGemma's class: its language model, head and prompt marker are used, its vision tower is not."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={**TEXT_CONFIGS["gemma3"]().to_dict(), "final_logit_softcapping": None},
            vision_config={**vision, "image_size": 28},
        )
    )
    tokenizer = tiny_tokenizer(bos_first=True)
    tokenizer.add_tokens(["<end_of_image>"], special_tokens=True)
    tokenizer = prepare_tokenizer(tokenizer)
    model = assemble(whole, tokenizer, tiny_settings(tmp_path / "base"), audio_config=tiny_encoder_config())
    processor = build_processor(tokenizer, model.config)
    text = processor.tokenizer.decode(processor.encode_prompt("Hi", 1, "cinc"))
    assert text == "<|audio|>" * 4 + "<s><end_of_image>This is a recording of heart sound. Hi"
    assert model.config.text.model_type == "gemma3_text" and type(model.get_decoder()).__name__ == "Gemma3TextModel"
    ids = torch.tensor([processor.encode_prompt("Hi", 0, "safety")])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, whole(input_ids=ids).logits)
    merge_lora(model)
    save_checkpoint(model, processor, tmp_path / "merged")
    assert same(load_checkpoint(tmp_path / "merged")[0], model)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An adapter checkpoint, its base beside it."""
    model, processor = tiny_model(tmp_path / "base")
    save_checkpoint(model, processor, tmp_path / "adapter")
    merge_lora(model)
    save_checkpoint(model, processor, tmp_path / "merged")
    return tmp_path


def refused(folder: Path | str) -> str:
    with pytest.raises(UserError) as error:
        StethoLMForConditionalGeneration.from_pretrained(folder)
    message = str(error.value)
    assert "\n" not in message, "one line"
    return message


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_truncated_weights(saved: Path, kind: str) -> None:
    file = saved / kind / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "damaged or cut short" in refused(saved / kind)
    file.write_bytes(b"")
    assert "damaged or cut short" in refused(saved / kind)
    file.unlink()
    assert "model.safetensors" in refused(saved / kind)


def test_no_checkpoint_there(tmp_path: Path) -> None:
    assert "no config.json" in refused(tmp_path)
    assert "no config.json" in refused(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no config.json"):
        load_checkpoint(str(tmp_path / "nothing"))


def test_another_base_or_none(saved: Path) -> None:
    config = json.loads((saved / "adapter" / "config.json").read_text())
    tiny_base(saved / "other", "qwen2")
    write = (saved / "adapter" / "config.json").write_text
    write(json.dumps({**config, "language_model": str(saved / "other")}))
    assert "made for a base with model_type llama" in refused(saved / "adapter")
    write(json.dumps({**config, "language_model": str(saved / "gone")}))
    assert f"nothing at {saved / 'gone'}" in refused(saved / "adapter")


def test_weights_of_another_configuration(saved: Path) -> None:
    config = json.loads((saved / "adapter" / "config.json").read_text())
    write = (saved / "adapter" / "config.json").write_text
    write(json.dumps({**config, "lora": {**config["lora"], "dpo": {"r": 2, "alpha": 4, "dropout": 0.0}}}))
    assert "lacks weights" in refused(saved / "adapter")
    write(json.dumps({**config, "lora": None}))
    assert "has unknown weights" in refused(saved / "adapter")
    write(json.dumps({**config, "prefix_tokens": 2}))
    assert "config.json and weights disagree" in refused(saved / "adapter")


def test_what_cannot_be_done_with_an_adapter_is_said(saved: Path) -> None:
    with pytest.raises(UserError, match="device_map cannot be used with a checkpoint that holds adapters only: merge"):
        StethoLMForConditionalGeneration.from_pretrained(saved / "adapter", device_map="cpu")
    model = StethoLMForConditionalGeneration.from_pretrained(saved / "adapter", attn_implementation="eager")
    assert model.model.language_model.config._attn_implementation == "eager"


def test_from_s3(saved: Path) -> None:
    """All three from_pretrained and load_checkpoint take a URI."""
    from stetholm.storage import open_storage

    storage = open_storage(StorageSettings())
    expected, _ = load_checkpoint(saved / "adapter")
    for kind in ("adapter", "merged"):
        uri = storage.join("tests-model", kind)
        storage.upload_dir(saved / kind, uri)
        shutil.rmtree(saved / kind)
        model, processor = load_checkpoint(uri, storage)
        assert StethoLMProcessor.from_pretrained(uri).encode_prompt("Hi", 1) == processor.encode_prompt("Hi", 1)
        assert same(StethoLMForConditionalGeneration.from_pretrained(uri), model)
        assert StethoLMModel.from_pretrained(uri).dtype == torch.float32
        if kind == "adapter":
            assert same(model, expected)
    with pytest.raises(UserError):
        load_checkpoint(storage.join("tests-model", "nothing"), storage)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A merged model in bfloat16 whose weights are in several files, and its processor."""
    model, processor = tiny_model(tmp_path / "base", dtype=torch.bfloat16)
    merge_lora(lively(model))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    model.save_pretrained(tmp_path / "one")
    processor.save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    return tmp_path / "sharded"


def test_weights_in_several_files(sharded: Path) -> None:
    """From a folder and from a bucket, by our classes and by transformers'."""
    from stetholm.storage import open_storage

    expected = StethoLMForConditionalGeneration.from_pretrained(sharded.parent / "one")
    storage = open_storage(StorageSettings())
    uri = storage.join("tests-model", "sharded")
    storage.upload_dir(sharded, uri)
    for source in (sharded, uri):
        model, _ = load_checkpoint(source, storage, merge=True)
        assert same(model, expected) and model.dtype == torch.bfloat16
    assert same(AutoModelForCausalLM.from_pretrained(sharded), expected)
    other = StethoLMForConditionalGeneration(model.config)
    load_own_weights(other, uri, storage)
    assert torch.equal(other.get_parameter(STEM).bfloat16(), expected.get_parameter(STEM))


STEM = "model.projector.model.0.weight"


def test_damage_to_weights_in_several_files(sharded: Path) -> None:
    index, shard = sharded / "model.safetensors.index.json", sorted(sharded.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert f"{shard.name} is damaged or cut short" in refused(sharded)
    shard.unlink()
    assert f"lacks {shard.name}, which model.safetensors.index.json names" in refused(sharded)
    shard.write_bytes(whole)
    text = index.read_text()
    for broken in (text[: len(text) // 2], "", "[]", "{}"):
        index.write_text(broken)
        assert "model.safetensors.index.json is damaged or cut short" in refused(sharded)
    index.unlink()
    assert "has no model.safetensors" in refused(sharded)


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_damage_to_the_configuration(saved: Path, kind: str) -> None:
    file = saved / kind / "config.json"
    text = file.read_text()
    for broken in (text[: len(text) // 2], ""):
        file.write_text(broken)
        assert "config.json cannot be used" in refused(saved / kind)
    fields = json.loads(text)
    for change, said in (
        ({"audio_encoder": "ast"}, "audio_encoder 'ast' needs"),
        ({"prefix_tokens": 0}, "prefix_tokens is 0"),
        ({"prefix_tokens": "four"}, "prefix_tokens is 'four': give a whole number"),
        ({"weights": "adapter", "language_model": None}, "names no base model"),
    ):
        file.write_text(json.dumps({**fields, **change}))
        message = refused(saved / kind)
        assert "config.json cannot be used" in message and said in message
    assert "holds a model of type 'llama', not a StethoLM checkpoint" in refused(saved / "base")


@pytest.mark.parametrize("change", [{"prefix_tokens": 2}, {"text_config": {"intermediate_size": 64}}])
def test_a_merged_model_of_another_size_than_its_configuration(saved: Path, change: dict[str, Any]) -> None:
    file = saved / "merged" / "config.json"
    fields = json.loads(file.read_text())
    text = {**fields["text_config"], **change.get("text_config", {})}
    file.write_text(json.dumps({**fields, **change, "text_config": text}))
    message = refused(saved / "merged")
    assert "config.json and weights disagree" in message and " in the weights, but the configuration says (" in message


def test_an_adapter_from_the_hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id, from the cache that a download leaves."""
    cache, commit = tmp_path / "hub", "0" * 40
    repo = cache / "models--somebody--stetholm"
    shutil.copytree(saved / "adapter", repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = StethoLMForConditionalGeneration.from_pretrained("somebody/stetholm")
    assert same(model, StethoLMForConditionalGeneration.from_pretrained(saved / "adapter"))
    with pytest.raises(UserError, match="somebody/else"):
        StethoLMForConditionalGeneration.from_pretrained("somebody/else")
