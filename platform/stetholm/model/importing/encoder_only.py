"""The encoder of a weights file alone: for probes, which need no language model."""

from __future__ import annotations

from pathlib import Path

import torch

from stetholm.errors import UserError
from stetholm.model.encoders import AudioEncoder, build_encoder
from stetholm.model.importing.contents import Contents
from stetholm.model.importing.encoder_names import TOWER
from stetholm.model.importing.importer import published_encoder
from stetholm.model.importing.layouts import layout_of
from stetholm.model.importing.reading import read_state


def imported_encoder(file: Path) -> AudioEncoder:
    """COLA with the weights of an OPERA-CE or StethoLM file, in eval mode.

    Raises:
        UserError: the file cannot be used, or lacks weights of the encoder.
    """
    state = read_state(file)
    tensors = Contents.of(state, layout_of(state, "auto")).tensors
    own = {name.removeprefix(TOWER): tensor for name, tensor in tensors.items() if name.startswith(TOWER)}
    encoder = build_encoder("cola", published_encoder())
    wanted = encoder.state_dict()
    problems = [name for name, value in wanted.items() if name in own and own[name].shape != value.shape]
    # How many batches a norm has seen is of no use in eval mode, and not in every file.
    problems += [name for name in wanted.keys() - own.keys() if not name.endswith("num_batches_tracked")]
    if problems:
        raise UserError(f"{file} does not hold the encoder COLA: {problems[0]} is missing or of another shape")
    if not all(bool(torch.isfinite(own[name]).all()) for name in own):
        raise UserError(f"{file} holds weights that are not finite")
    encoder.load_state_dict({name: own.get(name, value) for name, value in wanted.items()})
    return encoder.eval()
