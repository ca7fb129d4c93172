import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.errors import UserError
from stetholm.model import merge_lora
from stetholm.model.explain import Clip, attention
from stetholm.model.explain.asking import unwrap
from stetholm.model.explain.attending import eager_copy
from stetholm.model.fresh import build_processor
from tests.model.tiny import TEXT_CONFIGS, lively, tiny_model

QUESTION = "Compare the lung sounds of these two, please."


@pytest.mark.parametrize("kind", sorted(TEXT_CONFIGS))
def test_it_equals_generating_step_by_step(kind: str, tmp_path: Path, clips: list[Clip]) -> None:
    """Each row, in each layer, also with Gemma's sliding window; the answer is the one that is generated."""
    model, processor = tiny_model(tmp_path, kind)
    lively(model)
    found = attention(model, processor, QUESTION, clips[:2], max_new_tokens=12)
    model.model.language_model.set_attn_implementation("eager")
    batch = processor.collate(
        [{"input_ids": processor.encode_prompt(QUESTION, 2), "features": [clip.log_mel for clip in clips[:2]]}]
    )
    made = model.generate(
        **batch, max_new_tokens=12, use_cache=False, output_attentions=True, return_dict_in_generate=True
    )
    ids = made.sequences[0, batch["input_ids"].shape[1] :].tolist()
    assert list(found.answer_ids) == ids[: len(found.answer_ids)] and found.weights.shape[0] >= 3
    for token, layers in enumerate(made.attentions[: len(found.answer_ids)]):
        rows = torch.stack([weights[0, :, -1].mean(dim=0) for weights in layers]).numpy()
        np.testing.assert_allclose(found.by_layer[:, token, : rows.shape[1]], rows, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_rows_sum_to_one_over_what_came_before(kind: str, tmp_path: Path, clips: list[Clip]) -> None:
    model, processor = tiny_model(tmp_path, kind)
    found = attention(lively(model), processor, QUESTION, clips[:1], answer="The lung sounds are normal.")
    generated, positions = found.weights.shape
    assert positions == len(found.tokens) == found.prompt_length + generated
    np.testing.assert_allclose(found.by_layer.sum(axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(found.shares.sum(axis=1), 1, atol=1e-5)
    for token, row in enumerate(found.weights):
        assert not row[found.prompt_length + token :].any()
    if kind == "gemma3":  # the first layer sees 16 positions at most, the second one all
        assert (found.by_layer[0] > 0).sum(axis=1).max() == 16 < (found.by_layer[1] > 0).sum(axis=1).min()


@settings(max_examples=25)
@given(recordings=st.integers(0, 4), words=st.integers(1, 20), style=st.sampled_from(["plain", "chat"]))
def test_spans_hold_each_position_once(ready: Any, clips: list[Clip], recordings: int, words: int, style: str) -> None:
    model, processor = ready
    processor = build_processor(processor.tokenizer, model.config)
    processor.prompt_style, processor.prompt_marker = style, "<s>" if words % 2 else ""
    question = " ".join(["lung"] * words)
    found = attention(model, processor, question, (clips * 2)[:recordings], answer="Normal.")
    held = [place for span in found.spans for place in range(span.start, span.stop)]
    assert held == list(range(found.weights.shape[1])) and all(span.stop > span.start for span in found.spans)
    names = [span.name for span in found.spans]
    sounds = [f"audio {number}" for number in range(1, recordings + 1)]
    marked = ["marker"] if words % 2 else []
    inside = [*sounds, *marked, "instruction"] if style == "plain" else ["template", *sounds, "instruction", "template"]
    assert names == [*inside, "response"]
    assert all(span.stop - span.start == 4 for span in found.spans if span.name.startswith("audio "))
    text = "".join(found.tokens[span.start : span.stop][0] for span in found.spans if span.name == "audio 1")
    assert text == ("audio 1.1" if recordings else "")


def test_parts_say_what_they_hold(ready: Any, clips: list[Clip]) -> None:
    found = attention(*ready, "Is it normal?", clips[:1], answer="Yes.", dataset="cinc")
    instruction = next(span for span in found.spans if span.name == "instruction")
    text = "".join(found.tokens[instruction.start : instruction.stop])
    assert text == "This is a recording of heart sound. Is it normal?"
    assert "".join(found.tokens[found.prompt_length :]) == "Yes.</s>" and found.answer == "Yes."
    json.dumps(found.to_dict())


def test_eager_gives_what_the_model_gives(ready: Any, clips: list[Clip]) -> None:
    model, processor = ready
    assert model.model.language_model.config._attn_implementation == "sdpa"
    found = attention(model, processor, QUESTION, clips[:2], answer="The second wheezes.")
    pair = processor.encode_pair(QUESTION, "The second wheezes.", 2)
    batch = processor.collate([{**pair, "features": [clip.log_mel for clip in clips[:2]]}])
    with torch.no_grad():
        sums, counts = model.response_logps(**batch)
        embeds = model.model.embed(batch["input_ids"], batch["input_features"])
        how = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"], "use_cache": False}
        eager = model.logits(eager_copy(model.model.language_model)(**how).last_hidden_state)
        sdpa = model.logits(model.model.language_model(**how).last_hidden_state)
    torch.testing.assert_close(eager, sdpa, atol=1e-5, rtol=0)
    assert counts.item() == len(found.logps)
    assert found.logps.sum() == pytest.approx(sums.item(), abs=1e-4)


def test_the_model_stays_as_it_is_and_usable_meanwhile(pair: Any, clips: list[Clip]) -> None:
    """In the middle of the eager pass the model itself runs, as another thread's request would."""
    model, processor = pair
    decoder = model.model.language_model
    ids = torch.tensor([processor.encode_prompt("Hi, how are you?", 0)])
    with torch.no_grad():
        before = model(input_ids=ids).logits
    meanwhile: list[torch.Tensor] = []
    implementations: list[str] = []

    def use_it(layer: Any, inputs: Any, output: Any) -> None:
        implementations.append(layer.config._attn_implementation)
        if not meanwhile:
            meanwhile.append(torch.empty(0))
            meanwhile.append(model(input_ids=ids).logits)

    decoder.layers[0].self_attn.register_forward_hook(use_it)
    attention(model, processor, QUESTION, clips[:1], answer="Yes.")
    assert implementations == ["eager", "sdpa"]
    assert torch.equal(meanwhile[1], before)
    assert decoder.config._attn_implementation == model.config.text._attn_implementation == "sdpa"
    copied = eager_copy(decoder)
    assert all(
        one is other for (_, one), (_, other) in zip(copied.named_parameters(), decoder.named_parameters(), strict=True)
    ), "no weight is copied"


def test_after_an_exception_the_model_is_as_before(pair: Any, clips: list[Clip]) -> None:
    model, processor = pair
    attention(model, processor, QUESTION, clips[:1], answer="Yes.")

    def fail(module: Any, inputs: Any) -> None:
        raise RuntimeError("in the middle")

    before = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    handle = model.model.language_model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        attention(model, processor, QUESTION, clips[:1], answer="Yes.")
    handle.remove()
    after = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    assert after == before and model.model.language_model.config._attn_implementation == "sdpa"


def test_wrapped_by_peft_or_merged_is_the_same(tmp_path: Path, clips: list[Clip]) -> None:
    model, processor = tiny_model(tmp_path)
    merge_lora(lively(model))
    plain = attention(model, processor, QUESTION, clips[:1], answer="Yes, it is.")
    torch.manual_seed(3)
    adapter = peft.LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    wrapped = peft.get_peft_model(model, adapter).eval()
    found = attention(wrapped, processor, QUESTION, clips[:1], answer="Yes, it is.")
    assert unwrap(wrapped) is model and np.abs(found.weights - plain.weights).max() > 1e-3
    merged = wrapped.merge_and_unload()
    again = attention(merged, processor, QUESTION, clips[:1], answer="Yes, it is.")
    np.testing.assert_allclose(found.by_layer, again.by_layer, atol=1e-5)


def test_sampling_and_bfloat16(tmp_path: Path, clips: list[Clip]) -> None:
    model, processor = tiny_model(tmp_path, dtype=torch.bfloat16)
    torch.manual_seed(0)
    found = attention(lively(model), processor, QUESTION, clips[:1], max_new_tokens=5, do_sample=True, temperature=2.0)
    assert found.by_layer.dtype == np.float32 and 1 <= len(found.answer_ids) <= 5
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, atol=0.02)


def test_what_cannot_be_explained_is_refused(ready: Any, pair: Any, clips: list[Clip]) -> None:
    model, processor = ready
    with pytest.raises(UserError, match="nothing to explain"):
        attention(model, processor, "", [])
    with pytest.raises(UserError, match="has no tokens"):
        attention(model, processor, "Hi.", clips[:1], answer=[])
    with pytest.raises(UserError, match="but the model takes 256"):
        attention(model, processor, "Hi.", clips[:1], answer="wheezes and crackles " * 40)
    with pytest.raises(UserError, match="no recording at"):
        attention(model, processor, "Hi.", "nowhere.wav")
    with pytest.raises(ValueError, match="training mode"):
        attention(pair[0].train(), processor, "Hi.", clips[:1])
    with pytest.raises(ValueError, match="cannot be explained"):
        attention(model.model, processor, "Hi.", clips[:1])
