from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stetholm.model.modeling_stetholm import positions
from tests.model.tiny import TEXT_CONFIGS, lively, tiny_model


def examples(processor: Any, seed: int = 0) -> list[dict[str, Any]]:
    """One recording, two recordings, none."""
    rng = np.random.default_rng(seed)
    texts = [
        ("Is it normal?", "Yes.", 1),
        ("Compare the sounds of the lung.", "The second wheezes.", 2),
        ("Hi.", "No", 0),
    ]
    return [
        {**processor.encode_pair(question, answer, n), "features": rng.random((n, 64, 218), dtype=np.float32)}
        for question, answer, n in texts
    ]


@pytest.mark.parametrize("kind", sorted(TEXT_CONFIGS))
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_equals_cross_entropy_over_all_logits(kind: str, side: str, tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path, kind)
    batch = processor.collate(examples(processor), side)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = lively(model)(**batch).logits
        out = model(**batch, labels=labels)
        summed = model(**batch, labels=labels, num_items_in_batch=torch.tensor(3)).loss
    expected = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
    assert out.logits is None, "the head is applied to the response alone"
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(summed, expected * (labels != -100).sum() / 3)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_row_of_a_padded_batch_equals_the_row_alone(kind: str, tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path, kind)
    lively(model)
    rows = examples(processor)
    for side in ("left", "right"):
        together, counts = _logps(model, processor.collate(rows, side))
        alone = [_logps(model, processor.collate([row])) for row in rows]
        torch.testing.assert_close(together, torch.cat([sums for sums, _ in alone]), atol=1e-5, rtol=1e-5)
        assert counts.tolist() == [sum(label != -100 for label in row["labels"]) for row in rows]


def _logps(model: Any, batch: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model.response_logps(**batch)


def test_prefix_embeddings_stand_where_the_placeholders_were(pair: Any) -> None:
    model, processor = pair
    batch = processor.collate(examples(processor))
    audio = model.encode_audio(batch["input_features"])
    embeds = model.model.embed(batch["input_ids"], audio_embeds=audio)
    mask = batch["input_ids"] == model.config.audio_token_id
    assert audio.shape == (3, 4, model.config.width)
    assert torch.equal(embeds[mask], audio.reshape(-1, model.config.width))
    words = model.get_input_embeddings()(batch["input_ids"].masked_fill(mask, 0))
    assert torch.equal(embeds[~mask], words[~mask])


def test_the_answer_depends_on_each_recording_and_on_their_order(pair: Any) -> None:
    model, processor = pair
    batch = processor.collate([examples(processor)[1]])
    plain, _ = _logps(model, batch)
    swapped, _ = _logps(model, {**batch, "input_features": batch["input_features"].flip(0)})
    assert not torch.allclose(plain, swapped)


def test_counts_that_disagree_are_both_named(pair: Any) -> None:
    model, processor = pair
    batch = processor.collate(examples(processor))
    with pytest.raises(ValueError, match="12 audio placeholders, but 2 recordings of 4 need 8"):
        model(**{**batch, "input_features": batch["input_features"][:2]})
    with pytest.raises(ValueError, match="12 audio placeholders, but 0 recordings"):
        model(**{**batch, "input_features": batch["input_features"][:0]})
    with pytest.raises(ValueError, match=r"shape \(3, 60, 218\)"):
        model(**{**batch, "input_features": batch["input_features"][:, :60]})


def test_no_response_tokens_give_a_zero_that_trains_nothing_but_reaches_all(pair: Any) -> None:
    model, processor = pair
    batch = processor.collate(examples(processor))
    loss = model.train()(**{**batch, "labels": torch.full_like(batch["labels"], -100)}).loss
    loss.backward()
    assert loss.item() == 0
    for name in ("model.projector.model.0.weight", "model.audio_tower.stem.weight"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None and not gradient.any()


def test_a_training_batch_without_recordings_reaches_the_audio_parts_and_leaves_their_statistics(pair: Any) -> None:
    model, processor = pair
    batch = processor.collate([examples(processor)[2]])
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.train()(**batch).loss.backward()
    assert all(p.grad is not None for p in model.model.projector.parameters())
    assert all(p.grad is not None for p in model.model.audio_tower.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert model.model.audio_tower.training


def test_gradients_reach_encoder_projector_and_adapter_also_with_checkpointing(pair: Any) -> None:
    model, processor = pair
    batch = processor.collate(examples(processor))
    model.train()(**batch).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()(**batch).loss.backward()
    assert any("lora_B" in name for name in plain) and any("stem" in name for name in plain)
    for name in (
        "model.projector.model.6.weight",
        "model.language_model.layers.0.self_attn.q_proj.lora_B.default.weight",
    ):
        torch.testing.assert_close(model.get_parameter(name).grad, plain[name], rtol=1e-3, atol=1e-5)


def test_frozen_encoder_stays_in_eval_mode(pair: Any) -> None:
    model, _ = pair
    model.model.audio_tower.requires_grad_(False)
    model.train()
    assert model.model.training and not model.model.audio_tower.training


def test_text_states_do_not_depend_on_padding(pair: Any) -> None:
    model, processor = pair
    ids = processor.tokenizer(["normal heart", "wheezes and crackles in the lung"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.hidden_states_of_text(ids["input_ids"], ids["attention_mask"])
        n = int(ids["attention_mask"][0].sum())
        alone = model.hidden_states_of_text(ids["input_ids"][:1, :n], ids["attention_mask"][:1, :n])
    assert states.shape == (*ids["input_ids"].shape, model.config.width)
    torch.testing.assert_close(states[:1, :n], alone, atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 6), st.integers(1, 6))
def test_positions_count_real_tokens(padding: int, real: int) -> None:
    mask = torch.tensor([[0] * padding + [1] * real])
    assert positions(mask)[0, padding:].tolist() == list(range(real))


@pytest.mark.parametrize("convert", [lambda m: m.bfloat16(), lambda m: m.to(torch.bfloat16), lambda m: m.half()])
def test_rotary_frequencies_and_statistics_survive_a_change_of_type(pair: Any, convert: Any) -> None:
    """DeepSpeed converts the whole model; positions must not be rounded by it."""
    model, _ = pair
    before = {name: value.clone() for name, value in model.named_buffers()}
    convert(model)
    after = dict(model.named_buffers())
    assert any("inv_freq" in name for name in before) and any("running_var" in name for name in before)
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    assert all(parameter.dtype != torch.float32 for parameter in model.parameters())
