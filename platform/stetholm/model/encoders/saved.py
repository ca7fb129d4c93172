"""The encoder of one of our checkpoints, without its language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stetholm.errors import UserError
from stetholm.model.encoders import AudioEncoder, build_encoder

TOWER = "model.audio_tower."


def saved_encoder(source: str, storage: Any = None) -> AudioEncoder:
    """The encoder of the checkpoint ``source`` (folder, ``s3://`` URI or hub id), in float32 and eval mode.

    Raises:
        UserError: there is no checkpoint, or it is damaged or lacks weights of the encoder.
    """
    from stetholm.model.loading import local_folder, on_disk, read_config, read_weights

    folder: Path = on_disk(local_folder(source, storage))
    config = read_config(folder)
    encoder = build_encoder(config.audio_encoder, config.audio_config)
    state = read_weights(folder, lambda key: key.startswith(TOWER))
    own = {
        key.removeprefix(TOWER): value.float() if value.is_floating_point() else value for key, value in state.items()
    }
    missing = sorted(encoder.state_dict().keys() - own.keys())
    if missing:
        raise UserError(f"checkpoint {source} lacks weights of its encoder ({missing[0]}): copy or train it again")
    encoder.load_state_dict(own)
    return encoder.eval()
