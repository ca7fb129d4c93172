from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.model.tiny import TEXT_CONFIGS, lively, tiny_base, tiny_model

ASKED = [("Is it normal?", 1), ("Compare the lung sounds of these two.", 2), ("Hi.", 0)]


def rows(processor: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"input_ids": processor.encode_prompt(text, n), "features": rng.random((n, 64, 218), dtype=np.float32)}
        for text, n in ASKED
    ]


def generate(model: Any, batch: dict[str, Any], **how: Any) -> list[list[int]]:
    """New tokens of each row up to the end."""
    torch.manual_seed(0)
    out = model.generate(**batch, **{"max_new_tokens": 10, **how})[:, batch["input_ids"].shape[1] :].tolist()
    ends = set(model.generation_config.eos_token_id)
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in out]


@pytest.mark.parametrize("kind", sorted(TEXT_CONFIGS))
@pytest.mark.parametrize(
    "how", [{"do_sample": False}, {"num_beams": 3, "length_penalty": 0.5}], ids=["greedy", "beams"]
)
def test_a_batch_equals_one_by_one(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path, kind)
    lively(model)
    prompts = rows(processor)
    together = generate(model, processor.collate(prompts, "left"), **how)
    assert together == [generate(model, processor.collate([prompt], "left"), **how)[0] for prompt in prompts]


def test_greedy_equals_the_argmax_of_a_growing_prompt(pair: Any) -> None:
    """Generation with cache against plain forward passes without: the recordings enter once, in the right place."""
    model, processor = pair
    batch = processor.collate([rows(processor)[1]], "left")
    expected: list[int] = []
    ids = batch["input_ids"]
    for _ in range(6):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), input_features=batch["input_features"])
        expected.append(int(logits.logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([expected[-1:]])], dim=1)
    out = model.generate(**batch, max_new_tokens=6, eos_token_id=None)
    assert out[0, batch["input_ids"].shape[1] :].tolist() == expected
    again = model.generate(**batch, max_new_tokens=6, eos_token_id=None, use_cache=False)
    assert torch.equal(out, again)


@pytest.mark.parametrize("how", [{"num_beams": 4}, {"do_sample": True, "top_k": 5}], ids=["beams", "samples"])
def test_several_sequences_a_prompt_keep_their_recordings(pair: Any, how: dict[str, Any]) -> None:
    model, processor = pair
    prompts = rows(processor)
    out = generate(model, processor.collate(prompts, "left"), num_return_sequences=3, **how)
    assert len(out) == 9
    if "num_beams" in how:
        first = generate(model, processor.collate(prompts, "left"), **how)
        assert out[::3] == first


def test_recordings_are_encoded_once_a_call(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = pair
    calls: list[int] = []
    model.model.audio_tower.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    generate(model, processor.collate(rows(processor), "left"), num_beams=2, num_return_sequences=2)
    assert calls == [3]


def test_bfloat16_generates(tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path, dtype=torch.bfloat16)
    assert len(generate(model, processor.collate(rows(processor), "left"))) == 3


def test_placeholder_within_the_vocabulary_is_never_written(tmp_path: Path) -> None:
    model, _ = tiny_model(tmp_path)
    assert model.config.audio_token_id < model.config.text.vocab_size
    assert model.generation_config.suppress_tokens == [model.config.audio_token_id]


@pytest.mark.parametrize(
    "how",
    [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 2, "num_return_sequences": 2}],
    ids=["greedy", "beams", "samples", "several beams"],
)
def test_embeddings_in_place_of_tokens_give_the_same_answers(pair: Any, how: dict[str, Any]) -> None:
    model, processor = pair
    batch = processor.collate(rows(processor), "left")
    expected = generate(model, batch, **how)
    with torch.no_grad():
        embeds = model.model.embed(batch["input_ids"], batch["input_features"])
    torch.manual_seed(0)
    out = model.generate(inputs_embeds=embeds, attention_mask=batch["attention_mask"], max_new_tokens=10, **how)
    assert [processor.tokenizer.decode(row, skip_special_tokens=True) for row in out] == [
        processor.tokenizer.decode(row, skip_special_tokens=True) for row in expected
    ]
    with pytest.raises(ValueError, match="give recordings with input_ids"):
        model.generate(inputs_embeds=embeds, input_features=batch["input_features"], max_new_tokens=2, **how)


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_recordings_that_do_not_fit_the_prompts_are_refused_however_one_generates(
    pair: Any, how: dict[str, Any]
) -> None:
    model, processor = pair
    batch = processor.collate(rows(processor), "left")
    features = batch["input_features"]
    for wrong in (features[:2], torch.cat([features, features[:1]]), features[:0]):
        with pytest.raises(ValueError, match="the prompts have 12 audio placeholders, but"):
            model.generate(**{**batch, "input_features": wrong}, max_new_tokens=2, **how)
    cut = batch["input_ids"].clone()
    cut[cut == model.config.audio_token_id] = 5
    cut[0, :6] = cut[1, :6] = model.config.audio_token_id
    with pytest.raises(ValueError, match="prompt 0 has 6 audio placeholders, but a recording takes 4"):
        model.generate(**{**batch, "input_ids": cut}, max_new_tokens=2, **how)


def test_a_language_model_without_a_pad_token(tmp_path: Path) -> None:
    """Padding is with EOS, and masks come from lengths."""
    tiny_base(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token is None
    model, processor = tiny_model(tmp_path)
    model.config.text_config.pad_token_id = None
    assert model.generation_config.pad_token_id == tokenizer.eos_token_id == processor.tokenizer.pad_token_id
    prompts = rows(processor)
    together = generate(lively(model), processor.collate(prompts, "left"))
    assert together == [generate(model, processor.collate([prompt], "left"))[0] for prompt in prompts]
