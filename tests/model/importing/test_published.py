"""The authors' StethoLM files: the logits are those of the published forward pass, plainly re-stated."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stetholm.errors import UserError
from stetholm.model import StethoLMForConditionalGeneration, StethoLMProcessor, load_checkpoint, set_trainable
from stetholm.model.checkpoint import load_own_weights
from stetholm.model.importing import PartialImportError, import_weights
from stetholm.training.precision import to_training_precision
from tests.model.importing.cases import ENDS, KINDS, LOGITS, SETTINGS, Case, State, bring, logit_difference, trained
from tests.model.importing.published import ALPHA, RANK
from tests.model.tiny import tiny_settings

Save = Callable[..., Path]
Cases = Callable[..., Case]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """One case a kind, made when it is first asked for."""
    made: dict[tuple[str, bool], Case] = {}

    def case(kind: str = "medgemma", lora: bool = True) -> Case:
        if (kind, lora) not in made:
            made[kind, lora] = Case(tmp_path_factory.mktemp(kind), kind, lora)
        return made[kind, lora]

    return case


@pytest.mark.parametrize(
    ("content", "wrapped"),
    [("adapter", True), ("whole with adapter", False), ("full", True)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_published_ones(
    kind: str, content: str, wrapped: bool, cases: Cases, saved: Save, tmp_path: Path
) -> None:
    case = cases(kind, lora=content != "full")
    state = case.state(whole=content != "adapter")
    file = saved({"model_state_dict": state, "epoch": 1} if wrapped else state)
    report, model, processor = bring(file, case.base, tmp_path / "out")
    assert report.whole
    assert len(report.imported) + len(report.repeated) + len(report.unused) == len(state), "every key"
    assert logit_difference(case, model, processor) <= LOGITS
    assert model.config.weights == ("adapter" if content == "adapter" else "full")
    lora = model.config.lora["default"]
    assert (lora["r"], lora["alpha"]) == (SETTINGS["lora"].r if content == "full" else RANK, ALPHA)


def test_medgemmas_prompt_and_ends(cases: Cases, saved: Save, tmp_path: Path) -> None:
    _, model, processor = bring(saved(cases().state(whole=False)), cases().base, tmp_path / "out")
    text = processor.tokenizer.decode(processor.encode_prompt("Hi", 1, "cinc"))
    assert text == "<|audio|>" * 4 + "<s><end_of_image>This is a recording of heart sound. Hi"
    assert model.generation_config.eos_token_id == ENDS, "the base's own"


def test_medgemmas_eyes_are_known_and_unused(cases: Cases, saved: Save, tmp_path: Path) -> None:
    """PEFT matches q, k and v of the vision tower too: their adapters are in the file, and not needed."""
    report, *_ = bring(saved(cases().state(whole=False)), cases().base, tmp_path / "out")
    assert report.unused and all("vision_tower" in key and ".lora_" in key for key in report.unused)
    assert len(report.repeated) == 2 * 4 * 2, "A and B of four projections in two layers, a second time"
    assert all(key.startswith("medgemma_full.") for key in report.repeated)


def older(key: str) -> str:
    """As transformers before 4.52 called Gemma 3's parts."""
    key = key.replace("model.language_model.layers", "language_model.model.layers")
    return f"lm.model.{key.removeprefix('lm.')}" if key.startswith("lm.layers.") else key


@pytest.mark.parametrize(
    "change",
    [older, lambda key: f"module.{key}", lambda key: key.replace(".default.", ".")],
    ids=["older transformers", "data parallel", "adapter without a name"],
)
def test_other_names_of_the_same(change: Callable[[str], str], cases: Cases, saved: Save, tmp_path: Path) -> None:
    case = cases()
    state = {change(key): value for key, value in case.state(whole=False).items()}
    report, model, processor = bring(saved(state), case.base, tmp_path / "out")
    assert report.whole and logit_difference(case, model, processor) <= LOGITS


def test_weights_of_half_the_size_stay_as_they_are(cases: Cases, saved: Save, tmp_path: Path) -> None:
    """A language model in bfloat16 is kept so; encoder, projector and adapters keep all their digits."""
    state = {
        key: value if trained(key) else value.bfloat16() for key, value in cases("llama").state(whole=True).items()
    }
    bring(saved(state), cases("llama").base, tmp_path / "out")
    kept = load_file(tmp_path / "out" / "model.safetensors")
    for key, value in kept.items():
        language = "language_model" in key and ".lora_" not in key
        assert value.dtype == (torch.bfloat16 if language else torch.float32) or "tracked" in key, key
    name = "layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(kept[f"model.language_model.{name}"], state[f"lm.base_model.model.model.{name}"])


def test_a_whole_file_needs_no_weights_of_the_base(cases: Cases, saved: Save, tmp_path: Path) -> None:
    case = cases("qwen2")
    weights = case.base / "model.safetensors"
    weights.rename(tmp_path / "away")
    try:
        _, model, processor = bring(saved(case.state(whole=True)), case.base, tmp_path / "out")
    finally:
        (tmp_path / "away").rename(weights)
    assert logit_difference(case, model, processor) <= LOGITS


def test_import_load_generate(cases: Cases, saved: Save, tmp_path: Path) -> None:
    import_weights(saved(cases("llama").state(whole=False)), tmp_path / "out", tiny_settings(cases("llama").base))
    processor = StethoLMProcessor.from_pretrained(tmp_path / "out")
    model = StethoLMForConditionalGeneration.from_pretrained(tmp_path / "out")
    batch = processor(text="Is it normal?", audio=torch.rand(16_000).numpy(), sampling_rate=16_000)
    out = model.generate(**batch, max_new_tokens=5, eos_token_id=None)
    assert out.shape[1] == batch["input_ids"].shape[1] + 5
    merged, _ = load_checkpoint(tmp_path / "out", merge=True)
    assert torch.equal(merged.generate(**batch, max_new_tokens=5, eos_token_id=None), out)


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "whole"])
def test_training_goes_on_from_it(whole: bool, cases: Cases, saved: Save, tmp_path: Path) -> None:
    """As a training stage takes a parent up: in bfloat16, then encoder, projector and adapter with all their digits."""
    case = cases("llama")
    import_weights(saved(case.state(whole)), tmp_path / "out", tiny_settings(case.base, **SETTINGS))
    model, processor = load_checkpoint(tmp_path / "out", dtype=torch.bfloat16)
    to_training_precision(model)
    load_own_weights(model, tmp_path / "out")
    expected = case.model.prefix_project.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.model.projector.state_dict().items())
    set_trainable(model, "sft")
    pair = processor.encode_pair("Is it normal?", "It is.", 1)
    batch = processor.collate([{**pair, "features": torch.rand(1, 64, 218).numpy()}])
    model.train()(**batch).loss.backward()
    moved = [name for name, one in model.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0]
    assert any("lora_A.default" in name for name in moved) and any("audio_tower" in name for name in moved)


def refused(file: Path, case: Case, folder: Path) -> PartialImportError:
    with pytest.raises(PartialImportError) as error:
        import_weights(file, folder, tiny_settings(case.base, **SETTINGS))
    assert "\n" not in str(error.value) and not folder.exists()
    return error.value


def spoiled(state: State) -> Iterator[tuple[str, State, str]]:
    """Files that do not fit: what is wrong, the file, and the report's list that tells."""
    a = next(key for key in state if "lora_A" in key)
    b = a.replace("lora_A", "lora_B")
    yield "a lost half of an adapter", {key: state[key] for key in state if key != b}, "missing"
    yield "an adapter of an unknown name", {key.replace("default", "second"): state[key] for key in state}, "unknown"
    yield "DoRA", {**state, a.replace("lora_A", "lora_magnitude_vector"): torch.ones(32)}, "unknown"
    yield "another projector", {**state, "prefix_project.model.0.weight": torch.ones(64, 768)}, "misshapen"
    yield "no adapter at all", {key: state[key] for key in state if ".lora_" not in key}, "missing"
    yield "one layer too many", {**state, a.replace("layers.0", "layers.9"): state[a]}, "unknown"


@pytest.mark.parametrize("at", range(6))
def test_what_does_not_fit_is_refused(at: int, cases: Cases, saved: Save, tmp_path: Path) -> None:
    case = cases("llama")
    what, state, expected = list(spoiled(case.state(whole=False)))[at]
    error = refused(saved(state), case, tmp_path / "out")
    assert getattr(error.report, expected), what


def test_the_two_copies_of_the_text_part_must_agree(cases: Cases, saved: Save, tmp_path: Path) -> None:
    case, state = cases(), cases().state(whole=False)
    key = next(key for key in state if key.startswith("medgemma_full.") and "lora_B" in key and "language_model" in key)
    file = saved({**state, key: state[key] + 1})
    error = refused(file, case, tmp_path / "out")
    assert error.report.contradictory[0].startswith(f"{key} and lm.") and "1 contradictory" in str(error)
    _, model, processor = bring(file, case.base, tmp_path / "out", allow_partial=True)
    assert logit_difference(case, model, processor) <= LOGITS, "with lm, as the published code computes"


def test_the_wrong_base_is_asked_about(cases: Cases, saved: Save, tmp_path: Path) -> None:
    error = refused(saved(cases("llama").state(whole=True)), cases("qwen2"), tmp_path / "out")
    assert f"is model.language_model={cases('qwen2').base} its base?" in str(error)
    assert any("q_proj.bias" in name for name in error.report.missing)


def test_adapters_of_several_ranks(cases: Cases, saved: Save, tmp_path: Path) -> None:
    state: dict[str, Any] = cases("llama").state(whole=False)
    a = next(key for key in state if "lora_A" in key)
    with pytest.raises(UserError, match=r"several ranks \(\[4, 6\]\)"):
        bring(saved({**state, a: torch.ones(6, 32)}), cases("llama").base, tmp_path / "out")


def test_what_a_partial_file_lacks_comes_from_the_base(cases: Cases, saved: Save, tmp_path: Path) -> None:
    case, state = cases("llama"), cases("llama").state(whole=True)
    partial = {key: value for key, value in state.items() if "layers.1.mlp" not in key}
    lost = len(state) - len(partial)
    assert len(refused(saved(partial), case, tmp_path / "out").report.missing) == lost > 0
    report, model, processor = bring(saved(partial), case.base, tmp_path / "out", allow_partial=True)
    assert len(report.missing) == lost and logit_difference(case, model, processor) <= LOGITS


def test_adapters_on_some_layers_only(cases: Cases, saved: Save, tmp_path: Path) -> None:
    """A file with adapters on q and v alone makes a model with adapters on q and v alone."""
    state = {key: value for key, value in cases("llama").state(whole=False).items() if "k_proj" not in key}
    state = {key: value for key, value in state.items() if "o_proj" not in key}
    report, model, _ = bring(saved(state), cases("llama").base, tmp_path / "out")
    assert report.whole and model.config.lora["default"]["targets"] == ["q_proj", "v_proj"]
