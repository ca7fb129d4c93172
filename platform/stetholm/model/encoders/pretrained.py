"""Pretrained weights of an encoder's network: a hub id, a folder or an ``s3://`` URI, as transformers saves it.

What fits: ``ast``: an ASTModel or a classifier on top of one (``MIT/ast-finetuned-audioset-10-10-0.4593``); ``clap``:
an unfused ClapModel or its audio branch (``laion/clap-htsat-unfused``); ``cola``: an EfficientNetModel. OPERA-CE
checkpoints are no such folders: ``jobs/import_weights.py`` reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from stetholm.errors import UserError
from stetholm.model.encoders import build_encoder, encoder_class
from stetholm.model.encoders.base import AudioEncoder
from stetholm.model.language import explained, quiet, source_of

SETTING = "model.audio_encoder_weights"
_LABELS = ("id2label", "label2id", "architectures", "dtype")


def pretrained_encoder(name: str, source: str) -> tuple[AudioEncoder, PreTrainedConfig]:
    """Encoder ``name`` with the weights of ``source`` (float32), and its configuration.

    Raises:
        UserError: there are none, they are of another kind, damaged or incomplete.
    """
    kind = encoder_class(name)
    if kind.network_class is None:
        raise UserError(f"audio encoder {name!r} takes no pretrained weights: leave {SETTING} out")
    network = _load(kind.network_class, name, source)
    config = kind.pretrained_config(_bare(network.config))
    try:
        kind.check_config(config)
    except ValueError as error:
        raise UserError(f"{SETTING}: {source} does not fit encoder {name!r}: {error}") from error
    encoder = build_encoder(name, config)
    encoder.network.load_state_dict(network.state_dict())
    encoder.adapt()
    return encoder.eval(), config


def _load(network_class: type[PreTrainedModel], name: str, source: str) -> PreTrainedModel:
    """The network, every weight of which comes from ``source``; safetensors only, nothing is unpickled."""
    loader: Any = network_class
    how = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    try:
        with explained("the weights of audio encoder", source, SETTING), quiet():
            network, info = loader.from_pretrained(source_of(source, SETTING), **how)
    except (StrictDataclassError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{SETTING}: {source} is not of encoder {name!r} ({reason})") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"{SETTING}: {source} is not of encoder {name!r}: it lacks {len(missing)} weights of "
            f"{network_class.__name__} (e.g. {missing[0]})"
        )
    loaded: PreTrainedModel = network
    return loaded


def _bare(config: PreTrainedConfig) -> PreTrainedConfig:
    """Without what belongs to the classifier that the network may have come with."""
    fields = {key: value for key, value in config.to_dict().items() if key not in _LABELS}
    return type(config)(**fields)
