"""How far imported weights are from independent code: ``model/parity``. Ours is the difference, the baseline its bound.

The independent code is in tests/model/importing/published.py. Random weights: the published files are not here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.report import Result
from tests.model.importing.cases import FEATURES, KINDS, LOGITS, Case, bring, feature_difference, logit_difference
from tests.model.importing.published import live_encoder
from tests.model.tiny import tiny_base

RECORDINGS = 32
BOUND = "the largest difference that is allowed, in float32"


def parity() -> Iterator[Result]:
    """Of the encoder's features, and of the logits for each kind of file."""
    with tempfile.TemporaryDirectory(prefix="stetholm-parity-") as scratch:
        yield encoder_features(Path(scratch))
        for kind in KINDS:
            for whole in (False, True):
                folder = Path(scratch, f"{kind}-{whole}")
                folder.mkdir()
                yield logits(folder, kind, whole)


def encoder_features(folder: Path) -> Result:
    """Pooled features of EfficientNet-B0 against ``efficientnet_pytorch``."""
    encoder = live_encoder()
    torch.save({f"encoder.{key}": value for key, value in encoder.state_dict().items()}, folder / "opera.pt")
    _, model, _ = bring(folder / "opera.pt", tiny_base(folder / "base"), folder / "out")
    config = {"what": "features of the encoder", "recordings": RECORDINGS}
    found = feature_difference(encoder, model, RECORDINGS)
    return Result("model/parity", found, FEATURES, "largest absolute difference", BOUND, config)


def logits(folder: Path, kind: str, whole: bool) -> Result:
    """Logits against the published forward pass, written out."""
    case = Case(folder / "base", kind, lora=True)
    torch.save({"model_state_dict": case.state(whole)}, folder / "stetholm.pt")
    _, model, processor = bring(folder / "stetholm.pt", case.base, folder / "out")
    config = {"what": "logits", "language_model": f"tiny random {kind}", "file": "whole" if whole else "adapter"}
    found = logit_difference(case, model, processor)
    return Result("model/parity", found, LOGITS, "largest absolute difference", BOUND, config)
