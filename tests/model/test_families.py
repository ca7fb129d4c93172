"""Language models of other families: the same promises for each, from a folder named in the settings."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stetholm.errors import UserError
from stetholm.model import build_model, load_checkpoint, merge_lora, save_checkpoint, set_trainable
from stetholm.model.language import load_tokenizer
from stetholm.model.processing_stetholm import StethoLMProcessor
from stetholm.settings import LoraSettings, ModelSettings
from tests.model.families import FAMILIES, family_base, family_tokenizer
from tests.model.test_checkpoint import same
from tests.model.test_generation import generate, rows
from tests.model.test_language import needs_wheel
from tests.model.test_modeling import examples
from tests.model.tiny import lively

STYLES = {"gemma3": "plain", "llama3.2": "chat", "qwen2": "plain", "qwen3": "chat", "phi3": "chat", "gpt2": "plain"}
"""Each family in one style; both styles of each are compared with the tokenizer's own in the tests of prompts."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: family_base(tmp_path_factory.mktemp(kind.replace(".", "")), kind) for kind in FAMILIES}


def settings_of(folder: Path, kind: str, **more: Any) -> ModelSettings:
    lora = LoraSettings(r=4, alpha=8, dropout=0.0, targets=FAMILIES[kind].targets)
    values = {"prompt_style": STYLES[kind], "projector_dropout": 0.0, **more}
    return ModelSettings(language_model=str(folder), lora=lora, **values)


def built(folders: dict[str, Path], kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return build_model(settings_of(folders[kind], kind), dtype=dtype)


def text_logits(model: Any, batch: dict[str, Any], audio: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=batch["input_ids"], audio_embeds=audio).logits
    return logits


def close(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    """Equal up to a share of the largest value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=share * float(expected.abs().max()))


def heard(model: Any, features: np.ndarray) -> torch.Tensor:
    """A row's recordings, encoded by themselves: an untrained encoder turns the rounding of a batch into other sounds.

    What is compared with these is the language model, for which such differences decide between tokens.
    """
    with torch.no_grad():
        encoded: torch.Tensor = model.encode_audio(torch.from_numpy(features))
    return encoded


every_family = pytest.mark.parametrize("kind", sorted(FAMILIES))


@every_family
def test_text_alone_gives_the_base_models_own_logits(folders: dict[str, Path], kind: str) -> None:
    """Its class is the true one, and neither head, scale nor positions are lost on the way."""
    model, processor = built(folders, kind)
    base = AutoModelForCausalLM.from_pretrained(folders[kind], dtype=torch.float32).eval()
    assert type(base).__name__ == FAMILIES[kind].class_name
    ids = torch.tensor([processor.encode_prompt("Are there wheezes in the lung sounds?", 0)])
    with torch.no_grad():
        expected = base(input_ids=ids).logits
        close(model(input_ids=ids).logits, expected, 1e-5)
    tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied == model.config.tie_word_embeddings


@every_family
def test_adapters_sit_on_the_attention_projections(folders: dict[str, Path], kind: str) -> None:
    model, _ = built(folders, kind)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == FAMILIES[kind].adapted


@every_family
def test_a_fixed_batch_is_learnt_and_the_base_stays(folders: dict[str, Path], kind: str) -> None:
    model, processor = built(folders, kind)
    set_trainable(model, "sft")
    batch = processor.collate(examples(processor))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    model.train()
    model.model.audio_tower.eval()
    torch.manual_seed(0)
    losses = []
    for _ in range(6):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2, losses
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(".lora_" in name or "language_model" not in name for name in changed)
    assert {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[1] for name in changed if ".lora_B." in name} == set(
        FAMILIES[kind].adapted
    )


@every_family
def test_greedy_is_the_argmax_step_by_step_and_a_batch_is_its_rows(folders: dict[str, Path], kind: str) -> None:
    model, processor = built(folders, kind)
    lively(model)
    prompts = rows(processor)
    embeds = {id(prompt): heard(model, prompt["features"]) for prompt in prompts}

    def batch_of(prompts: list[Any]) -> dict[str, Any]:
        batch = processor.collate(prompts, "left")
        return {**batch, "input_features": None, "audio_embeds": torch.cat([embeds[id(prompt)] for prompt in prompts])}

    for how in (
        {"max_new_tokens": 6},
        {"max_new_tokens": 5, "num_beams": 3, "length_penalty": 0.5, "early_stopping": True},
    ):
        alone = [generate(model, batch_of([prompt]), **how)[0] for prompt in prompts]
        assert generate(model, batch_of(prompts), **how) == alone

    batch = batch_of(prompts[1:2])
    ids, suppressed = batch["input_ids"], model.generation_config.suppress_tokens
    for _ in range(5):
        with torch.no_grad():
            logits = model(input_ids=ids, audio_embeds=batch["audio_embeds"]).logits[0, -1]
        logits[suppressed] = float("-inf")
        ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
    assert torch.equal(model.generate(**batch, max_new_tokens=5, eos_token_id=None), ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_family
def test_saved_and_loaded_bit_for_bit_with_adapters_and_merged(
    folders: dict[str, Path], kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, processor = built(folders, kind, dtype)
    lively(model)
    batch = processor.collate(rows(processor), "left")
    for name in ("adapter", "merged"):
        if name == "merged":
            merge_lora(model)
        save_checkpoint(model, processor, tmp_path / name)
        again, its_processor = load_checkpoint(tmp_path / name)
        assert same(model, again) and again.dtype == dtype
        assert (tmp_path / name / "model.safetensors").stat().st_size > 1000
        assert its_processor.encode_pair("Is it normal?", "Yes.", 1) == processor.encode_pair(
            "Is it normal?", "Yes.", 1
        )
        with torch.no_grad():
            # Close, not equal: where weights lie in memory decides how a library sums; a random encoder amplifies it.
            audio = model.encode_audio(batch["input_features"])
            close(again.encode_audio(batch["input_features"]), audio, 5e-3)
            close(text_logits(again, batch, audio), text_logits(model, batch, audio), 1e-5)
        assert generate(again, batch, max_new_tokens=4) == generate(model, batch, max_new_tokens=4)
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert not [b for name, b in again.named_buffers() if "inv_freq" in name and b.dtype != torch.float32]


def own_prompt(processor: StethoLMProcessor, question: str) -> str:
    """The prompt as the tokenizer itself would write it, recordings and all."""
    content = "<|audio|>" * 4 + f"This is a recording of heart sound. {question}"
    values = {"date_string": "26 Jul 2024", "enable_thinking": False}
    turn = [{"role": "user", "content": content}]
    written: str = processor.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **values)
    return written


@every_family
def test_chat_prompts_are_the_templates_own_with_one_bos(kind: str) -> None:
    processor = StethoLMProcessor(family_tokenizer(FAMILIES[kind]), prompt_style="chat")
    ids = processor.encode_prompt("Is it normal?", 1, "cinc")
    written = own_prompt(processor, "Is it normal?")
    assert ids == processor.tokenizer(written, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(ids) == written
    if FAMILIES[kind].bos_first:
        assert ids.count(processor.tokenizer.bos_token_id) == 1 and ids[0] == processor.tokenizer.bos_token_id


@every_family
def test_plain_prompts_are_audio_then_bos_marker_and_text(folders: dict[str, Path], kind: str) -> None:
    family = FAMILIES[kind]
    _, processor = build_model(settings_of(folders[kind], kind, prompt_style="plain"))
    ids = processor.encode_prompt("Is it normal?", 1, "cinc")
    own = processor.tokenizer(f"{family.marker}This is a recording of heart sound. Is it normal?")["input_ids"]
    assert ids == [processor.audio_token_id] * 4 + own, "as the published code: prefix, then the tokenised text"
    assert ids.count(processor.tokenizer.bos_token_id) == int(family.bos_first)


def test_a_template_that_asks_for_the_date_gives_the_same_prompt_any_day() -> None:
    processor = StethoLMProcessor(family_tokenizer(FAMILIES["llama3.2"]), prompt_style="chat")
    assert re.search(r"Today Date: 26 Jul 2024\n", processor.tokenizer.decode(processor.encode_prompt("Hi", 0)))


def test_thinking_is_closed_before_the_answer() -> None:
    processor = StethoLMProcessor(family_tokenizer(FAMILIES["qwen3"]), prompt_style="chat")
    assert processor.tokenizer.decode(processor.encode_prompt("Hi", 0)).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "writes a user's text 2 times: use plain"),
        ("{{ raise_exception('images only') }}", "images only.*use plain"),
        ("{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}", "writes a user's text 0 times"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(template: str, message: str) -> None:
    tokenizer = family_tokenizer(FAMILIES["qwen2"])
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        StethoLMProcessor(tokenizer, prompt_style="chat").encode_prompt("Hi", 0)


def test_unknown_lora_targets_are_refused_with_the_setting_and_the_choice(folders: dict[str, Path]) -> None:
    def build(kind: str, targets: Any) -> None:
        lora = LoraSettings(targets=targets)
        build_model(ModelSettings(language_model=str(folders[kind]), lora=lora))

    with pytest.raises(UserError, match=r"no q_proj.*GPT2Model.*model\.lora\.targets.*c_attn"):
        build("gpt2", None)
    with pytest.raises(UserError, match=r"no query in Phi3Model.*model\.lora\.targets.*qkv_proj"):
        build("phi3", ("qkv_proj", "query"))


def test_targets_of_ones_own_are_kept_in_the_checkpoint(folders: dict[str, Path], tmp_path: Path) -> None:
    lora = LoraSettings(r=2, alpha=4, dropout=0.0, targets=("q_proj", "down_proj"))
    model, processor = build_model(ModelSettings(language_model=str(folders["qwen2"]), lora=lora))
    lively(model)
    save_checkpoint(model, processor, tmp_path)
    again, _ = load_checkpoint(tmp_path)
    assert same(model, again)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in again.state_dict() if ".lora_" in name}
    assert adapted == {"q_proj", "down_proj"}


@pytest.mark.long
@needs_wheel
def test_the_real_smollm2_in_its_chat_template_learns_answers_and_is_kept(tmp_path: Path) -> None:
    model, processor = build_model(ModelSettings(prompt_style="chat"), dtype=torch.bfloat16)
    assert type(model.get_decoder()).__name__ == "LlamaModel" and model.config.tie_word_embeddings
    written = own_prompt(processor, "Is it normal?")
    ids = processor.encode_prompt("Is it normal?", 1, "cinc")
    assert processor.tokenizer.decode(ids) == written and written.startswith("<|im_start|>system\n")
    set_trainable(model, "sft")
    trained = [p for p in model.parameters() if p.requires_grad]
    features = np.random.default_rng(0).random((1, 64, 218), dtype=np.float32)
    pair = {
        **processor.encode_pair("Is it normal?", "Yes, both heart sounds are normal.", 1, "cinc"),
        "features": features,
    }
    batch = processor.collate([pair])
    optimizer = torch.optim.AdamW(trained, lr=5e-5)
    losses = []
    for _ in range(3):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    merge_lora(model)
    save_checkpoint(model, processor, tmp_path)
    again, its_processor = load_checkpoint(tmp_path)
    assert same(model.eval(), again) and again.dtype == torch.bfloat16 and its_processor.prompt_style == "chat"
    prompt = its_processor.collate([{"input_ids": ids, "features": features}], "left")
    assert generate(again, prompt, max_new_tokens=4) == generate(model, prompt, max_new_tokens=4)


def test_the_checkpoints_tokenizer_is_the_bases(folders: dict[str, Path]) -> None:
    for kind, folder in folders.items():
        tokenizer = load_tokenizer(str(folder))
        assert tokenizer.pad_token == FAMILIES[kind].names.get("pad_token", FAMILIES[kind].names["eos_token"])
