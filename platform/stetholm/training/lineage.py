"""Where a checkpoint comes from: parent, corpus, code and settings, written beside the weights."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
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
    """

    stage: str
    run: str
    parent: str | None
    corpus: str
    corpus_sha256: str
    code: str


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
    """Write ``settings.yaml``, the model card ``README.md`` and, last, ``lineage.json`` into a checkpoint folder."""
    (folder / "settings.yaml").write_text(yaml.safe_dump(public_settings(settings), sort_keys=False))
    (folder / "README.md").write_text(_card(lineage, settings, numbers))
    (folder / "lineage.json").write_text(json.dumps(asdict(lineage), indent=2))


def _card(lineage: Lineage, settings: Settings, numbers: dict[str, Any]) -> str:
    rows = "\n".join(f"| {key} | {value} |" for key, value in numbers.items())
    return f"""---
library_name: transformers
pipeline_tag: audio-text-to-text
tags: [stetholm, auscultation, heart-sounds, lung-sounds]
base_model: {settings.model.language_model}
---
# StethoLM, stage {lineage.stage}, run {lineage.run}

An audio-language model of heart and lung sounds: audio encoder `{settings.model.audio_encoder}`, language model
`{settings.model.language_model}`.

| | |
|---|---|
| parent | {lineage.parent or "none (fresh)"} |
| corpus | {lineage.corpus} |
| corpus manifest sha256 | {lineage.corpus_sha256} |
| code | {lineage.code} |
{rows}

**Intended use:** research on auscultation. **Not for clinical use:** nothing it says is a diagnosis.
Its exact settings are in `settings.yaml`.
"""
