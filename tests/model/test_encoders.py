import copy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ASTConfig, ASTForAudioClassification, ClapAudioConfig, ClapConfig, ClapModel

import stetholm.model.encoders as encoders
from stetholm.errors import UserError
from stetholm.model import build_model, load_checkpoint, merge_lora, save_checkpoint, set_trainable
from stetholm.model.encoders import ENCODERS, ColaEncoder, build_encoder, discover, encoder_class
from stetholm.model.encoders.norm import FloatBatchNorm2d
from stetholm.model.encoders.pretrained import pretrained_encoder
from stetholm.model.fresh import assemble, build_processor
from stetholm.model.language import load_language_model, load_tokenizer
from tests.model.test_checkpoint import same
from tests.model.test_generation import generate, rows
from tests.model.test_modeling import examples
from tests.model.tiny import settle, tiny_encoder_config, tiny_settings

SMALL: dict[str, Any] = {
    "cola": tiny_encoder_config,
    "ast": lambda: ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_length=218,
        num_mel_bins=64,
    ),
    "clap": lambda: ClapAudioConfig(
        patch_embeds_hidden_size=16, depths=[1, 1], num_attention_heads=[2, 2], hidden_size=32, projection_dim=24
    ),
}
WIDTHS = {"cola": 320, "ast": 32, "clap": 24}


@pytest.mark.parametrize("name", sorted(ENCODERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_encoder_pools_a_clip_to_its_width(name: str, dtype: torch.dtype) -> None:
    encoder = build_encoder(name, SMALL[name]()).to(dtype)
    pooled = encoder(torch.rand(3, 64, 218, dtype=dtype))
    assert pooled.shape == (3, WIDTHS[name]) and encoder.width == WIDTHS[name]
    assert pooled.dtype == dtype and torch.isfinite(pooled).all()
    pooled.float().square().sum().backward()


def test_ast_of_another_size_stretches_the_spectrogram() -> None:
    config = SMALL["ast"]()
    config.max_length, config.num_mel_bins = 256, 128
    assert build_encoder("ast", config)(torch.rand(1, 64, 218)).shape == (1, 32)


def test_published_sizes() -> None:
    assert encoder_class("cola").default_config().hidden_dim == 1280
    assert encoder_class("ast").default_config().hidden_size == 768
    assert encoder_class("clap").default_config().projection_dim == 1024
    with pytest.raises(ValueError, match="ast, clap, cola"):
        encoder_class("mel")


def test_b0_trains_from_scratch() -> None:
    """The features of a fresh B0 differ between clips, as they would not with transformers' gamma near 0."""
    torch.manual_seed(0)
    encoder = ColaEncoder(ColaEncoder.default_config()).train()
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(4.0e6, rel=0.01)
    assert encoder(torch.rand(4, 64, 218)).std(dim=0).mean() > 0.05
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {n.momentum for n in norms} == {0.1} and all(torch.equal(n.weight, torch.ones_like(n.weight)) for n in norms)


def test_float_batch_norm_equals_torchs() -> None:
    ours, theirs = FloatBatchNorm2d(3, momentum=0.1), torch.nn.BatchNorm2d(3, momentum=0.1)
    for step in range(3):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_statistics_stay_float32_and_exact_in_a_bfloat16_model() -> None:
    encoder = ColaEncoder(tiny_encoder_config()).train()
    encoder(torch.rand(4, 64, 218))
    cast = copy.deepcopy(encoder).bfloat16()
    before, after = dict(encoder.named_buffers()), dict(cast.named_buffers())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {p.dtype for p in cast.parameters()} == {torch.bfloat16}
    cast.train()(torch.rand(4, 64, 218).bfloat16())
    assert any(not torch.equal(before[name], after[name]) for name in before), "they still move"


def saved_network(name: str, folder: Path) -> Any:
    """A small random network of the true class, as its publisher would have it on the hub."""
    torch.manual_seed(3)
    network: Any = encoder_class(name).network_class
    config = SMALL[name]()
    if name == "ast":
        config.max_length, config.num_mel_bins = 256, 128
    if name == "cola":
        config.batch_norm_momentum = 0.99  # Keras', as published EfficientNets have it
    made = network(config)
    for key, value in made.state_dict().items():
        if "running_mean" in key:
            value.normal_(-40, 5) if name == "clap" else value.normal_()
        if "running_var" in key:
            value.uniform_(200, 400) if name == "clap" else value.uniform_(0.5, 2)
    made.save_pretrained(folder)
    return made.eval()


def own_features(name: str, network: Any, clips: torch.Tensor) -> torch.Tensor:
    """What transformers' class makes of the clips, brought to its input by hand."""
    if name == "ast":
        frames = torch.nn.functional.interpolate(clips.transpose(1, 2)[:, None], (256, 128), mode="bilinear")[:, 0]
        return network(input_values=frames * 2 - 1).pooler_output
    decibels = 80 * (clips - 1) + 20
    return network(input_features=decibels.transpose(1, 2)[:, None]).audio_embeds


@pytest.mark.parametrize("name", ["ast", "clap"])
def test_pretrained_weights_give_transformers_own_features(name: str, tmp_path: Path) -> None:
    network = saved_network(name, tmp_path)
    encoder, config = pretrained_encoder(name, str(tmp_path))
    clips = torch.rand(2, 64, 218)
    with torch.no_grad():
        expected = own_features(name, network, clips)
        torch.testing.assert_close(encoder(clips), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert encoder.width == expected.shape[1] and type(config) is encoder_class(name).config_class


def test_pretrained_efficientnet_fills_cola_behind_its_stem(tmp_path: Path) -> None:
    network = saved_network("cola", tmp_path)
    encoder, config = pretrained_encoder("cola", str(tmp_path))
    assert isinstance(encoder, ColaEncoder) and config.batch_norm_momentum == pytest.approx(0.01)
    kept = encoder.efficientnet.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["ast", "clap", "cola"])
def test_a_model_begins_with_the_weights_that_the_settings_name(name: str, base: Path, tmp_path: Path) -> None:
    saved_network(name, tmp_path / "weights")
    expected, _ = pretrained_encoder(name, str(tmp_path / "weights"))
    settings = tiny_settings(base, audio_encoder=name, audio_encoder_weights=str(tmp_path / "weights"))
    model, processor = build_model(settings, dtype=torch.bfloat16)
    found = model.model.audio_tower.state_dict()
    for key, value in expected.state_dict().items():
        if not key.startswith("stem."):
            assert torch.equal(found[key], value.to(found[key].dtype)), key
    save_checkpoint(model, processor, tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "weights")
    assert same(load_checkpoint(tmp_path / "checkpoint")[0], model), "a checkpoint does not need them any more"


def test_a_classifier_on_top_of_ast_is_left_out(tmp_path: Path) -> None:
    config = SMALL["ast"]()
    config.id2label = {i: f"sound {i}" for i in range(5)}
    whole = ASTForAudioClassification(config)
    whole.save_pretrained(tmp_path)
    encoder, config = pretrained_encoder("ast", str(tmp_path))
    theirs = whole.audio_spectrogram_transformer.state_dict()
    assert all(torch.equal(encoder.network.state_dict()[key], value) for key, value in theirs.items())
    assert "sound 1" not in str(config.to_dict())


def test_the_audio_branch_of_a_whole_clap_is_taken(tmp_path: Path) -> None:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    audio = SMALL["clap"]().to_dict()
    whole = ClapModel(ClapConfig(text_config={**text, "vocab_size": 20}, audio_config=audio, projection_dim=24))
    whole.save_pretrained(tmp_path)
    encoder, _ = pretrained_encoder("clap", str(tmp_path))
    found = dict(encoder.network.named_parameters())
    theirs = {key: value for key, value in whole.named_parameters() if key.startswith("audio_")}
    assert theirs.keys() == found.keys() and all(torch.equal(found[key], value) for key, value in theirs.items())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no such folder \(model\.audio_encoder_weights\)"):
        pretrained_encoder("ast", f"{tmp_path}/nothing")
    with pytest.raises(UserError, match=r"cannot load the weights of audio encoder.*model\.audio_encoder_weights"):
        pretrained_encoder("clap", "no-such-owner/no-such-encoder")
    saved_network("ast", tmp_path / "ast")
    with pytest.raises(UserError, match=r"model\.audio_encoder_weights: .* is not of encoder 'clap'"):
        pretrained_encoder("clap", str(tmp_path / "ast"))
    fused = SMALL["clap"]()
    fused.enable_fusion, fused.fusion_type = True, "aff_2d"
    encoder_class("clap").network_class(fused).save_pretrained(tmp_path / "fused")
    with pytest.raises(UserError, match="take an unfused one"):
        pretrained_encoder("clap", str(tmp_path / "fused"))
    with pytest.raises(UserError, match=r"no audio encoder 'whisper': set model\.audio_encoder to one of ast, clap, c"):
        build_model(tiny_settings(base, audio_encoder="whisper"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["ast", "clap", "cola"])
def test_each_encoder_in_a_model_generates_trains_and_is_kept(
    name: str, dtype: torch.dtype, base: Path, tmp_path: Path
) -> None:
    tokenizer, lm = load_tokenizer(str(base)), load_language_model(str(base), dtype)
    settings = tiny_settings(base, audio_encoder=name)
    model = assemble(lm, tokenizer, settings, dtype=dtype, audio_config=SMALL[name]())
    processor = build_processor(tokenizer, model.config)
    settle(model)
    set_trainable(model, "sft")
    model.train()(**processor.collate(examples(processor))).loss.backward()
    assert all(p.grad is not None for p in model.model.audio_tower.parameters() if p.requires_grad)
    model.eval()
    batch = processor.collate(rows(processor), "left")
    for folder in (tmp_path / "adapter", tmp_path / "merged"):
        save_checkpoint(model, processor, folder)
        again, _ = load_checkpoint(folder)
        assert same(again, model) and type(again.config.audio_config) is encoder_class(name).config_class
        assert generate(again, batch, max_new_tokens=3) == generate(model, batch, max_new_tokens=3)
        merge_lora(model)


FOURTH = '''
"""Mean of each band, through one linear layer: an encoder of somebody else."""
import torch
from torch import nn
from transformers import PreTrainedConfig

from stetholm.model.encoders.base import N_MELS, AudioEncoder, register


class BandsConfig(PreTrainedConfig):
    model_type = "mean-of-bands"
    size: int = 12


@register("bands")
class BandsEncoder(AudioEncoder):
    config_class = BandsConfig

    def __init__(self, config):
        super().__init__()
        self.width = config.size
        self.linear = nn.Linear(N_MELS, config.size)

    @classmethod
    def default_config(cls):
        return BandsConfig()

    def forward(self, input_features):
        return self.linear(input_features.mean(dim=2))
'''


@pytest.fixture
def fourth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One more file in the folder of encoders, for the time of a test."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "bands.py").write_text(FOURTH)
    monkeypatch.setattr(encoders, "__path__", [*encoders.__path__, str(folder)])
    discover()
    yield
    del ENCODERS["bands"], sys.modules["stetholm.model.encoders.bands"]


@pytest.mark.usefixtures("fourth")
def test_a_fourth_encoder_is_one_file(base: Path, tmp_path: Path) -> None:
    model, processor = build_model(tiny_settings(base, audio_encoder="bands"))
    assert type(model.model.audio_tower).__name__ == "BandsEncoder"
    loss = model.train()(**processor.collate(examples(processor))).loss
    loss.backward()
    assert model.get_parameter("model.audio_tower.linear.weight").grad.abs().sum() > 0
    save_checkpoint(model.eval(), processor, tmp_path)
    again, _ = load_checkpoint(tmp_path)
    assert same(again, model) and again.config.audio_config.size == 12
    merge_lora(model)
    save_checkpoint(model, processor, tmp_path / "merged")
    assert same(load_checkpoint(tmp_path / "merged")[0], model)
    with pytest.raises(UserError, match=r"'bands' takes no pretrained weights: leave model\.audio_encoder_weights out"):
        build_model(tiny_settings(base, audio_encoder="bands", audio_encoder_weights=str(base)))
