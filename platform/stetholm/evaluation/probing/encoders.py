"""Whose features are probed: names and URIs of ``probe.encoders``, and the functions that they stand for.

checkpoint                  the encoder of the run's checkpoint, after training
s3://… or a folder          the encoder of another checkpoint, e.g. what ``import_weights`` has made
cola, ast, clap             random weights of ``run.seed``
cola:<source>               COLA with weights of an OPERA-CE or StethoLM file, or of an EfficientNetModel
ast:<source>, clap:<source> pretrained weights: hub id, folder or s3:// URI
log-mel                     mean and deviation over time of each of the 64 bands, over the frames that are sound
log-mel-padded              the same over all 218 frames, zero-padded as the encoders get them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stetholm.audio.features import CLIP_SECONDS, N_FRAMES
from stetholm.errors import UserError
from stetholm.model.encoders import ENCODERS, AudioEncoder, build_encoder, encoder_class
from stetholm.model.encoders.pretrained import pretrained_encoder
from stetholm.model.encoders.saved import saved_encoder
from stetholm.model.explain.clip import frames_between
from stetholm.model.importing.encoder_only import imported_encoder
from stetholm.storage import Storage

Features = Callable[[NDArray[np.float32], Sequence[float]], NDArray[np.float32]]
"""Log-mels (n, 64, 218) and their seconds -> features (n, width)."""

LOG_MEL, PADDED, CHECKPOINT = "log-mel", "log-mel-padded", "checkpoint"
_FILES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")


@dataclass(frozen=True)
class Encoder:
    """One entry of ``probe.encoders``.

    Attributes:
        text: as it was given.
        weights: where they come from.
        name: of the network; of a checkpoint, which says it itself, None.
        source: a checkpoint, or weights.
    """

    text: str
    weights: Literal["checkpoint", "random", "pretrained", "none"]
    name: str | None = None
    source: str | None = None

    @property
    def shown(self) -> str:
        """For tables: what it is, and whether it has learned anything."""
        if self.weights == "none":
            return {LOG_MEL: "log-mel statistics", PADDED: "log-mel statistics, with padding"}[self.text]
        if self.weights == "random":
            return f"{self.name}, random weights"
        if self.weights == "checkpoint":
            return "the checkpoint's encoder" if self.text == CHECKPOINT else f"encoder of {self.text}"
        return f"{self.name}, weights of {Path(str(self.source)).name or self.source}"


def parse_encoder(text: str, checkpoint: str | None) -> Encoder:
    """One entry of ``probe.encoders``.

    Args:
        text: the entry.
        checkpoint: URI of the run's checkpoint, if there is one.

    Raises:
        UserError: it is none of those that there are.
    """
    if text in (LOG_MEL, PADDED):
        return Encoder(text, "none")
    if text == CHECKPOINT:
        return Encoder(text, "checkpoint", source=checkpoint)
    name, colon, source = text.partition(":")
    if name in ENCODERS and source:
        return Encoder(text, "pretrained", name, source)
    if name in ENCODERS and not colon:
        return Encoder(text, "random", name)
    if text.startswith("s3://") or Path(text).expanduser().is_dir():
        return Encoder(text, "checkpoint", source=text)
    names = ", ".join(sorted(ENCODERS))
    raise UserError(
        f"probe.encoders: unknown encoder {text!r}: give checkpoint, a checkpoint's URI or folder, {LOG_MEL}, "
        f"{PADDED}, one of {names} (random weights), or one of these with weights, as {sorted(ENCODERS)[-1]}:<source>"
    )


def load_features(encoder: Encoder, storage: Storage, seed: int, device: str = "cpu") -> Features:
    """The function that makes its features.

    Raises:
        UserError: its weights cannot be loaded.
    """
    if encoder.weights == "none":
        return padded_statistics if encoder.text == PADDED else statistics
    network = load_network(encoder, storage, seed).to(device).float().eval()

    @torch.inference_mode()
    def pooled(log_mels: NDArray[np.float32], seconds: Sequence[float]) -> NDArray[np.float32]:
        made: NDArray[np.float32] = network(torch.from_numpy(log_mels).to(device)).float().cpu().numpy()
        return made

    return pooled


def load_network(encoder: Encoder, storage: Storage, seed: int) -> AudioEncoder:
    """An encoder with its weights.

    Raises:
        UserError: they are not there, or of another encoder.
    """
    source = encoder.source
    if encoder.weights == "checkpoint":
        return saved_encoder(str(source), storage)
    name = str(encoder.name)
    if encoder.weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_encoder(name, encoder_class(name).default_config())
    if name == "cola" and str(source).endswith(_FILES):
        return imported_encoder(_weights_file(str(source), storage))
    return pretrained_encoder(name, str(source))[0]


def _weights_file(source: str, storage: Storage) -> Path:
    file = storage.local_copy(source) if source.startswith("s3://") else Path(source).expanduser()
    if not file.is_file():
        raise UserError(f"probe.encoders: there is no weights file {source}")
    return file


def statistics(log_mels: NDArray[np.float32], seconds: Sequence[float]) -> NDArray[np.float32]:
    """Mean and standard deviation of each band over the frames of sound: (n, 64, 218) -> (n, 128)."""
    return np.stack([_over_time(mel[:, : _frames(length)]) for mel, length in zip(log_mels, seconds, strict=True)])


def padded_statistics(log_mels: NDArray[np.float32], seconds: Sequence[float]) -> NDArray[np.float32]:
    """The same over all frames. The padding's share then tells how long a recording is."""
    return np.stack([_over_time(mel) for mel in log_mels])


def _frames(seconds: float) -> int:
    return min(N_FRAMES, max(1, frames_between(0.0, min(seconds, CLIP_SECONDS)).stop))


def _over_time(log_mel: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([log_mel.mean(axis=1), log_mel.std(axis=1)]).astype(np.float32)
