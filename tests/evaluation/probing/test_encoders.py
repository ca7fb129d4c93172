"""Names and URIs of encoders, and the features that they make."""

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTModel

from stetholm.errors import UserError
from stetholm.evaluation.probing.encoders import load_features, parse_encoder
from stetholm.model import load_checkpoint
from tests.model.importing.published import live_encoder
from tests.serving.tiny import save_tiny

MELS = np.random.default_rng(0).random((3, 64, 218)).astype(np.float32)
SECONDS = [7.0, 2.0, 0.01]


def made(text, storage, checkpoint=None, seed=0):
    return load_features(parse_encoder(text, checkpoint), storage, seed)(MELS, SECONDS)


def test_statistics_are_of_the_sound_or_of_all(storage):
    sound, padded = made("log-mel", storage), made("log-mel-padded", storage)
    assert sound.shape == padded.shape == (3, 128)
    assert np.allclose(sound[0], padded[0]) and np.allclose(padded[1, :64], MELS[1].mean(axis=1))
    assert np.allclose(sound[1], [*MELS[1, :, :63].mean(axis=1), *MELS[1, :, :63].std(axis=1)], atol=1e-6)
    assert np.allclose(sound[2, :64], MELS[2, :, 0]) and (sound[2, 64:] == 0).all()


def test_a_checkpoints_encoder_is_the_one_in_its_model(storage, tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    model, _ = load_checkpoint(folder)
    with torch.no_grad():
        expected = model.model.pool_audio(torch.from_numpy(MELS)).numpy()
    for text, checkpoint in (("checkpoint", str(folder)), (str(folder), None)):
        assert np.allclose(made(text, storage, checkpoint), expected, atol=1e-6)
    with pytest.raises(UserError, match="no checkpoint at"):
        made(str(tmp_path), storage)


def test_an_opera_file_is_imported(storage, tmp_path):
    published = live_encoder().eval()
    torch.save({f"encoder.{key}": value for key, value in published.state_dict().items()}, tmp_path / "opera.ckpt")
    with torch.no_grad():
        expected = published(torch.from_numpy(MELS)).numpy()
    ours = made(f"cola:{tmp_path / 'opera.ckpt'}", storage)
    assert ours.shape == (3, 1280) and np.abs(ours - expected).max() < 1e-3 * np.abs(expected).max()


def test_pretrained_and_random_weights(storage, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ASTModel(ASTConfig(**sizes, max_length=218, num_mel_bins=64)).save_pretrained(tmp_path / "ast")
    assert made(f"ast:{tmp_path / 'ast'}", storage).shape == (3, 16)
    assert parse_encoder(f"ast:{tmp_path / 'ast'}", None).shown == "ast, weights of ast"
    assert parse_encoder("cola", None).shown == "cola, random weights"
    first, again, other = (made("cola", storage, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.allclose(first, other)


@pytest.mark.parametrize(
    ("text", "message"),
    [("wav2vec", "unknown encoder 'wav2vec': give checkpoint"), ("cola:", "unknown encoder 'cola:'"),
     ("cola:nowhere.ckpt", "no weights file nowhere.ckpt"), ("s3://stetholm/none", "none")],
)  # fmt: skip
def test_an_encoder_that_is_none_is_told(storage, text, message):
    with pytest.raises(UserError, match=message):
        made(text, storage)
