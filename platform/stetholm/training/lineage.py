"""Where a checkpoint comes from: parent, corpus, code and settings, written beside the weights."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from stetholm.settings import Settings

STATE_FOLDER = "training_state"
"""Below a checkpoint: what is needed to go on training."""


@dataclass(frozen=True)
class Lineage:
    """What a checkpoint was made from.

    Attributes:
        stage: align, sft or dpo.
        run: run.name.
        parent: URI of the checkpoint it started from; None for a fresh model.
        corpus: URI of the corpus it was trained on.
        corpus_sha256: of that corpus's manifest.
        code: version of the package, with the git commit where there is one.
        counts: pairs of the corpus by split, then by task, dataset and distribution.
        settings: of the stage, resolved, the seed, and what a fresh model is made from.
    """

    stage: str
    run: str
    parent: str | None
    corpus: str
    corpus_sha256: str
    code: str
    counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def code_version() -> str:
    """Package version, with the commit when run from a git checkout: ``0.1.0+g1a2b3c4``."""
    package = version("stetholm-platform")
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return package
    return f"{package}+g{commit}"


def public_settings(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, without the storage keys."""
    return settings.model_dump(mode="json", exclude={"storage": {"access_key", "secret_key"}})


def write_lineage(folder: Path, lineage: Lineage, settings: Settings, numbers: dict[str, Any]) -> None:
    """Write ``settings.yaml``, the model card ``README.md`` and, last, ``lineage.json`` into a checkpoint folder.

    Args:
        folder: has the model's ``config.json`` already.
        lineage: where the checkpoint comes from.
        settings: of the run.
        numbers: how far it has come: steps, samples, losses; by their names in the card.
    """
    from stetholm.model.card import Card, model_card  # here, as it brings torch: see StageJob

    known = {**asdict(lineage), "numbers": numbers}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "settings.yaml").write_text(yaml.safe_dump(public_settings(settings), sort_keys=False))
    (folder / "README.md").write_text(model_card(Card("checkpoint", config, [known])), encoding="utf-8")
    (folder / "lineage.json").write_text(json.dumps(known, indent=2))
