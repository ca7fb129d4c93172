"""Generation with shared prompts and roomy caches against transformers' own way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationMixin
from transformers.cache_utils import DynamicLayer

from stetholm.model.beams import BLOCK, GROUPED, ROOM, RoomyLayer, SharedPrompts, top_k, use_grouped_attention
from tests.model.test_generation import rows
from tests.model.tiny import lively, tiny_model

OURS = ("_prefill", "_prepare_cache_for_generation", "_get_top_k_continuations")
WAYS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True},
    "several of the beams": {"num_beams": 4, "num_return_sequences": 3},
    "samples": {"do_sample": True, "top_k": 20, "num_return_sequences": 3},
    "sampled beams": {"do_sample": True, "num_beams": 3},
    "greedy": {},
    "no cache": {"num_beams": 2, "use_cache": False},
}


def answer(model: Any, batch: dict[str, Any], how: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(5)
    made: torch.Tensor = model.generate(**batch, max_new_tokens=8, eos_token_id=None, **how)
    return made


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3"])
def test_every_way_gives_what_transformers_gives(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model(tmp_path, kind)
    batch = processor.collate(rows(processor), "left")
    lively(model)
    plain = model.model.language_model.config._attn_implementation
    ours = {name: answer(model, batch, how) for name, how in WAYS.items()}
    use_grouped_attention(model.model.language_model)
    assert plain == "sdpa" and model.model.language_model.config._attn_implementation == GROUPED
    grouped = {name: answer(model, batch, how) for name, how in WAYS.items()}
    model.model.language_model.set_attn_implementation("sdpa")
    for name in OURS:
        monkeypatch.setattr(SharedPrompts, name, getattr(GenerationMixin, name))
    for name, how in WAYS.items():
        expected = answer(model, batch, how)
        assert torch.equal(ours[name], expected), name
        assert torch.equal(grouped[name], expected), name


def test_a_prompt_is_computed_once_and_then_a_token_at_a_time(pair: Any) -> None:
    model, processor = pair
    batch = processor.collate(rows(processor), "left")
    seen: list[tuple[int, ...]] = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    answer(model, batch, WAYS["beams"])
    assert seen[0] == tuple(batch["input_ids"].shape) and set(seen[1:]) == {(12, 1)}


def test_eager_attention_is_left_alone(pair: Any) -> None:
    decoder = pair[0].model.language_model
    decoder.set_attn_implementation("eager")
    use_grouped_attention(decoder)
    assert decoder.config._attn_implementation == "eager"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 8), st.integers(8, 3 * BLOCK * 8), st.integers(0, 99))
def test_the_best_are_the_best(n: int, k: int, width: int, seed: int) -> None:
    scores = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    scores[:, : width // 2] = float("-inf") if seed % 3 == 0 else scores[:, : width // 2]
    values, places = top_k(scores, k)
    assert torch.equal(values, scores.topk(k).values) and torch.equal(scores.gather(1, places), values)


STEPS = st.lists(st.sampled_from(["token", "many", "reorder", "select", "crop"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), STEPS, st.integers(0, 99))
def test_a_roomy_layer_holds_what_a_plain_one_holds(prompts: int, steps: list[str], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    layers, beams = (RoomyLayer(), DynamicLayer()), 2
    start = torch.randn(prompts, 2, 5, 4, generator=draw)
    for layer in layers:
        layer.update(start, -start)
        layer.batch_repeat_interleave(beams)
    for step in steps:
        rows_now = len(layers[1].keys)
        new = torch.randn(rows_now, 2, 1 if step == "token" else ROOM + 3, 4, generator=draw)
        places = torch.arange(rows_now) // beams * beams + torch.randint(0, beams, (rows_now,), generator=draw)
        for layer in layers:
            if step in ("token", "many"):
                keys, values = layer.update(new, -new)
                assert keys.shape[-2] == layer.get_seq_length() == values.shape[-2]
            elif step == "reorder":
                layer.reorder_cache(places)
            elif step == "select":
                layer.batch_select_indices(torch.arange(max(rows_now - beams, beams)))
            elif layer.get_seq_length() > 6:
                layer.crop(-1)
        assert torch.equal(layers[0].keys, layers[1].keys) and torch.equal(layers[0].values, layers[1].values)
