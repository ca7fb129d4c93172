"""OPERA-CE checkpoints: the encoder computes what ``efficientnet_pytorch`` computes, and every key is accounted for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stetholm.errors import UserError
from stetholm.model import StethoLMForConditionalGeneration, load_checkpoint
from stetholm.model.importing import ImportReport, PartialImportError, import_weights
from tests.model.importing.cases import FEATURES, feature_difference
from tests.model.importing.published import Encoder
from tests.model.tiny import tiny_settings

Save = Callable[..., Path]
State = dict[str, torch.Tensor]
Model = StethoLMForConditionalGeneration


def imported(
    file: Path, base: Path, folder: Path, **more: Any
) -> tuple[ImportReport, StethoLMForConditionalGeneration]:
    report = import_weights(file, folder, tiny_settings(base), **more)
    return report, load_checkpoint(folder)[0]


def refused(file: Path, base: Path, folder: Path, **more: Any) -> PartialImportError:
    with pytest.raises(PartialImportError) as error:
        import_weights(file, folder, tiny_settings(base), **more)
    assert "\n" not in str(error.value) and not folder.exists()
    return error.value


def test_features_are_those_of_efficientnet_pytorch(
    opera: State, encoder: Encoder, base: Path, saved: Save, tmp_path: Path
) -> None:
    report, model = imported(saved({"state_dict": opera, "epoch": 7}), base, tmp_path / "out")
    assert report.whole and len(report.imported) == len(encoder.state_dict()) and len(report.unused) == 5
    assert feature_difference(encoder, model) <= FEATURES


def test_the_checkpoint_trains_as_theirs_does(opera: State, base: Path, saved: Save, tmp_path: Path) -> None:
    """Batch norms with the momentum and epsilon of ``efficientnet_pytorch``, and their very statistics."""
    _, model = imported(saved(opera), base, tmp_path / "out")
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}
    found = {key for key in load_file(tmp_path / "out" / "model.safetensors") if key.endswith("running_var")}
    assert len(found) == len(norms) == 49


def test_the_rest_is_fresh_and_over_the_named_base(opera: State, base: Path, saved: Save, tmp_path: Path) -> None:
    report, model = imported(saved(opera), base, tmp_path / "out", seed=3)
    assert model.config.weights == "adapter" and model.config.language_model == str(base)
    assert sum("projector" in name for name in report.fresh) == 6
    assert all("projector" in name or ".lora_" in name for name in report.fresh)
    again, same = imported(saved(opera), base, tmp_path / "again", seed=3)
    assert again == report
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("change", ["bare encoder", "data parallel", "with ImageNet's classifier", "half precision"])
def test_other_forms(change: str, opera: State, base: Path, saved: Save, tmp_path: Path) -> None:
    state = {key: value for key, value in opera.items() if key.startswith("encoder.")}
    if change == "bare encoder":
        state = {key.removeprefix("encoder."): value for key, value in state.items()}
    elif change == "data parallel":
        state = {f"module.{key}": value for key, value in state.items()}
    elif change == "half precision":
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    else:
        classifier = torch.nn.Linear(1280, 10)
        state |= {f"encoder.efficientnet._fc.{key}": value for key, value in classifier.state_dict().items()}
    report, model = imported(saved(state), base, tmp_path / "out")
    assert report.whole and len(report.unused) == (2 if "ImageNet" in change else 0)
    stem = next(value for key, value in state.items() if key.endswith("cnn1.weight"))
    assert torch.equal(model.model.audio_tower.stem.weight, stem.float())


def test_every_kind_of_misfit_is_listed(opera: State, base: Path, saved: Save, tmp_path: Path) -> None:
    del opera["encoder.cnn1.bias"], opera["encoder.efficientnet._blocks.3._se_reduce.weight"]
    opera["encoder.efficientnet._blocks.0._expand_conv.weight"] = torch.ones(1)  # the first block has none
    opera["decoder.weight"] = torch.ones(1)
    opera["encoder.cnn1.weight"] = torch.ones(3, 3, 3, 3)
    opera["encoder.efficientnet._bn0.weight"] = torch.full((32,), torch.nan)
    opera["encoder.efficientnet._bn1.num_batches_tracked"] = torch.tensor(0.5)
    error = refused(saved({"state_dict": opera}), base, tmp_path / "out")
    report, message = error.report, str(error)
    assert report.unknown == ("decoder.weight", "encoder.efficientnet._blocks.0._expand_conv.weight")
    assert set(report.missing) == {
        "model.audio_tower.stem.bias",
        "model.audio_tower.efficientnet.encoder.blocks.3.squeeze_excite.reduce.weight",
    }
    assert report.not_finite == ("encoder.efficientnet._bn0.weight",)
    assert "encoder.cnn1.weight: (3, 3, 3, 3) float32, expected (3, 1, 3, 3) float32" in report.misshapen
    assert len(report.misshapen) == 2
    for said in ("2 unknown (decoder.weight", "2 missing (", "2 of another shape (", "1 not finite ("):
        assert said in message
    assert "import_weights.allow_partial=true" in message and "language_model" not in message
    assert json.loads(json.dumps(report.to_json()))["counts"]["unknown"] == 2


def test_a_long_list_is_cut_in_the_message_only(opera: State, base: Path, saved: Save, tmp_path: Path) -> None:
    opera |= {f"extra.{i}": torch.ones(1) for i in range(50)}
    error = refused(saved(opera), base, tmp_path / "out")
    assert "50 unknown (extra.0, extra.1, extra.2 and 47 more)" in str(error) and len(error.report.unknown) == 50


def test_a_partial_import_is_made_when_asked_for(opera: State, base: Path, saved: Save, tmp_path: Path) -> None:
    kept = opera["encoder.cnn1.weight"].clone()
    del opera["encoder.cnn1.bias"]
    opera["decoder.weight"] = torch.ones(1)
    report, model = imported(saved(opera), base, tmp_path / "out", allow_partial=True)
    assert report.missing == ("model.audio_tower.stem.bias",) and report.unknown == ("decoder.weight",)
    assert torch.equal(model.model.audio_tower.stem.weight, kept)
    assert torch.isfinite(model.model.audio_tower.stem.bias).all(), "drawn anew"


def test_files_of_other_models(base: Path, saved: Save, tmp_path: Path) -> None:
    file = saved({"encoder.encoder.patch_embed.proj.weight": torch.ones(2), "head.weight": torch.ones(2)})
    with pytest.raises(UserError, match=r"no layout fits its keys \(encoder\.encoder\.patch_embed"):
        import_weights(file, tmp_path / "out", tiny_settings(base))
    error = refused(file, base, tmp_path / "out", layout="opera", allow_partial=True)
    assert not error.report.imported and "allow_partial" not in str(error), "nothing of it fits"


def test_only_for_the_encoder_cola(opera: State, base: Path, saved: Save, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.audio_encoder is 'ast'"):
        import_weights(saved(opera), tmp_path / "out", tiny_settings(base, audio_encoder="ast"))
