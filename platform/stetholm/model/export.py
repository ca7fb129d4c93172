"""A checkpoint as a folder for others: the merged model or the adapter alone, with its model card.

    python jobs/export.py --set run.name=demo
    python jobs/export.py --set run.name=demo --set export.kind=adapter --set export.to=/data/models/demo

Beside the model's and processor's files lie ``README.md`` (the card), ``lineage.json`` and ``settings.yaml`` of the
checkpoint, and ``export.json`` (what was exported, and how).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save_file
from transformers.utils import GENERATION_CONFIG_NAME

from stetholm.errors import UserError
from stetholm.model.card import Card, model_card
from stetholm.model.checkpoint import load_checkpoint
from stetholm.model.export_destination import LAST, MARKER, Destination
from stetholm.model.export_lora import write_peft_adapter
from stetholm.model.loading import WEIGHTS, local_folder, on_disk, read_config, read_weights
from stetholm.model.processing_stetholm import StethoLMProcessor
from stetholm.runs import read_result, require_checkpoint, run_uri
from stetholm.settings import Settings
from stetholm.storage import Storage

CARD = "README.md"
LORA_FOLDER = "lora"
SHARD_SIZE = "5GB"
"""Larger models are written as several files, as the hub likes them."""
COPIED = ("lineage.json", "settings.yaml")
_EXACT = ("running_mean", "running_var")
"""Statistics of batch norms: float32 whatever the model's type."""


@dataclass(frozen=True)
class Export:
    """One export of one checkpoint.

    Attributes:
        settings: of the run.
        storage: where runs lie.
        checkpoint: URI, folder or hub id.
        destination: where the export goes.
    """

    settings: Settings
    storage: Storage
    checkpoint: str
    destination: Destination

    @cached_property
    def source(self) -> Path:
        """The checkpoint's files on this machine.

        Raises:
            UserError: there is no checkpoint.
        """
        return on_disk(local_folder(self.checkpoint, self.storage))

    @property
    def kind(self) -> Literal["merged", "adapter"]:
        """What is written."""
        return self.settings.export.kind

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the weights; None: as they are."""
        name = self.settings.export.dtype
        return None if name == "keep" else cast(torch.dtype, getattr(torch, name))

    @property
    def inputs(self) -> dict[str, str]:
        """All that the weights depend on."""
        return {"checkpoint": self.checkpoint, "kind": self.kind, "dtype": self.settings.export.dtype}

    @cached_property
    def evaluation(self) -> str | None:
        """The table in Markdown that this run's evaluation wrote of the checkpoint; None if it has not evaluated it."""
        result = read_result(self.settings, self.storage, "evaluate")
        if result is None or str(result.get("inputs", {}).get("checkpoint")).rstrip("/") != self.checkpoint:
            return None
        table = f"{result['output']}/table.md"
        return self.storage.read_text(table) if self.storage.exists(table) else None


def export_model(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Export the run's checkpoint, or find that it is there already (then only a new evaluation goes into the card).

    Returns:
        ``output`` (URI or folder), ``checkpoint``, ``kind``, ``dtype``, ``parameters``, ``bytes``.

    Raises:
        UserError: no checkpoint, a damaged one, one without an adapter, or a destination that holds something else.
    """
    checkpoint = require_checkpoint(settings, storage).rstrip("/")
    destination = Destination(settings.export.to or _default(settings, storage), storage)
    job = Export(settings, storage, checkpoint, destination)
    there = destination.marker(job.inputs)
    result = _write(job) if there is None else _refresh(job, there)
    return {"output": destination.uri, "checkpoint": checkpoint, "kind": job.kind, **result}


def _write(job: Export) -> dict[str, Any]:
    with job.destination.filled() as folder:
        parameters = _write_merged(job, folder) if job.kind == "merged" else _write_adapter(job, folder)
        for name in COPIED:
            if (job.source / name).is_file():
                shutil.copyfile(job.source / name, folder / name)
        config = json.loads((folder / LAST).read_text(encoding="utf-8"))
        result = {"dtype": config["dtype"], "parameters": parameters, "bytes": _bytes(folder)}
        (folder / CARD).write_text(_card(job, config, parameters), encoding="utf-8")
        (folder / MARKER).write_text(_marker(job, result), encoding="utf-8")
    return result


def _refresh(job: Export, marker: dict[str, Any]) -> dict[str, Any]:
    """The result of the export that is there; its card is written anew if the checkpoint has been evaluated since."""
    result: dict[str, Any] = marker["result"]
    if marker["evaluation"] != _digest(job.evaluation):
        card = _card(job, json.loads(job.destination.read(LAST)), result["parameters"])
        job.destination.rewrite(CARD, card)
        job.destination.rewrite(MARKER, _marker(job, result))
    return result


def _marker(job: Export, result: dict[str, Any]) -> str:
    return json.dumps({"inputs": job.inputs, "result": result, "evaluation": _digest(job.evaluation)}, indent=2)


def ancestry(checkpoint: str, storage: Storage) -> list[dict[str, Any]]:
    """``lineage.json`` of a checkpoint and of those before it, newest first, as far as they are there.

    Each has ``checkpoint``, its URI; one without ``lineage.json`` has nothing else and ends the list.
    """
    found: list[dict[str, Any]] = []
    uri: str | None = checkpoint
    while uri and uri not in [entry["checkpoint"] for entry in found]:
        found.append({**_lineage(uri, storage), "checkpoint": uri})
        uri = found[-1].get("parent")
    return found


def _lineage(uri: str, storage: Storage) -> dict[str, Any]:
    where = f"{uri.rstrip('/')}/lineage.json"
    if uri.startswith("s3://"):
        lineage = storage.read_json(where) if storage.exists(where) else {}
    else:
        lineage = json.loads(Path(where).read_text(encoding="utf-8")) if Path(where).is_file() else {}
    return dict(lineage)


def _default(settings: Settings, storage: Storage) -> str:
    chosen = settings.export
    name = chosen.kind if chosen.dtype == "keep" else f"{chosen.kind}-{chosen.dtype}"
    return run_uri(settings, storage, "export", name)


def _write_merged(job: Export, folder: Path) -> int:
    """The whole model, without adapters; the number of its weights."""
    model, processor = load_checkpoint(job.source, dtype=job.dtype, merge=True)
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    processor.save_pretrained(folder)
    return int(model.num_parameters())


def _write_adapter(job: Export, folder: Path) -> int:
    """Encoder, projector and adapters, and the LoRA in PEFT's format; the number of weights."""
    config = read_config(job.source)
    if config.weights != "adapter" or not config.lora:
        raise UserError(
            f"checkpoint {job.checkpoint} has no adapter apart from its language model: use export.kind=merged"
        )
    state = read_weights(job.source)
    if job.dtype is not None:
        state = {key: _cast(key, value, job.dtype) for key, value in state.items()}
        config.dtype = job.dtype
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    write_peft_adapter(folder / LORA_FOLDER, config, state)
    if (job.source / GENERATION_CONFIG_NAME).is_file():
        shutil.copyfile(job.source / GENERATION_CONFIG_NAME, folder / GENERATION_CONFIG_NAME)
    StethoLMProcessor.from_pretrained(job.source).save_pretrained(folder)
    config.save_pretrained(folder)
    return sum(value.numel() for key, value in state.items() if value.is_floating_point() and not key.endswith(_EXACT))


def _cast(key: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to(dtype) if value.is_floating_point() and not key.endswith(_EXACT) else value


def _card(job: Export, config: dict[str, Any], parameters: int) -> str:
    uri = job.destination.uri
    return model_card(
        Card(
            kind=job.kind,
            config=config,
            lineage=ancestry(job.checkpoint, job.storage),
            evaluation=job.evaluation,
            source=uri if uri.startswith("s3://") else ".",
            checkpoint=job.checkpoint,
            parameters=parameters,
            lora_folder=LORA_FOLDER if job.kind == "adapter" else None,
        )
    )


def _digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _bytes(folder: Path) -> int:
    """Of the weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
