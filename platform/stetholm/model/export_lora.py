"""The LoRA of a checkpoint in PEFT's own format, over the language model alone."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from transformers import PreTrainedModel

from stetholm.model.card import hub_id
from stetholm.model.configuration_stetholm import StethoLMConfig
from stetholm.model.skeleton import empty_language_model

_KEY = re.compile(r"model\.language_model\.(?P<path>.+)\.lora_(?P<side>[AB])\.(?P<name>[^.]+)\.weight")
Factors = dict[str, dict[str, dict[str, torch.Tensor]]]
"""By the projection's path below the decoder, by adapter, by "A" and "B"."""


def write_peft_adapter(folder: Path, config: StethoLMConfig, state: dict[str, torch.Tensor]) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Several adapters become one whose rank is the sum of theirs: ``sum(s_i B_i A_i) = [s_1 B_1, …] [A_1; …]``.

    Args:
        folder: made if it is not there.
        config: of the checkpoint; names the base and the adapters.
        state: the checkpoint's weights.

    Raises:
        UserError: the configuration of the base model cannot be loaded.
    """
    adapters = cast(dict[str, dict[str, float]], config.lora)
    base = empty_language_model(cast(str, config.language_model), torch.bfloat16)
    decoder = next(name for name, module in base.named_modules() if module is base.get_decoder())
    factors = _factors(state)
    joined = {f"{decoder}.{path}": _join(adapters, by_name) for path, by_name in factors.items()}
    whole = len(adapters) > 1
    rank = sum(int(adapter["r"]) for adapter in adapters.values())
    first = next(iter(adapters.values()))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"base_model.model.{path}.lora_{side}.weight": part for path, pair in joined.items() for side, part in pair},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=hub_id(config.language_model) or config.language_model,
        r=rank,
        lora_alpha=rank if whole else int(first["alpha"]),
        lora_dropout=float(first["dropout"]),
        target_modules=_targets(base, set(joined)),
        inference_mode=True,
    ).save_pretrained(str(folder))


def _factors(state: dict[str, torch.Tensor]) -> Factors:
    found: Factors = defaultdict(lambda: defaultdict(dict))
    for key, value in state.items():
        match = _KEY.fullmatch(key)
        if match:
            found[match["path"]][match["name"]][match["side"]] = value
    return found


def _join(
    adapters: dict[str, dict[str, float]], by_name: dict[str, dict[str, torch.Tensor]]
) -> list[tuple[str, torch.Tensor]]:
    """A and B of one projection, ("A", (r, in)) and ("B", (out, r)); zeros for an adapter that leaves it alone."""
    some = next(iter(by_name.values()))
    if len(adapters) == 1:
        return [("A", some["A"]), ("B", some["B"])]
    parts = []
    for name, adapter in adapters.items():
        rank, scale = int(adapter["r"]), adapter["alpha"] / adapter["r"]
        none = {"A": some["A"].new_zeros(rank, some["A"].shape[1]), "B": some["B"].new_zeros(len(some["B"]), rank)}
        own = by_name.get(name, none)
        parts.append((own["A"], own["B"] * scale))
    return [("A", torch.cat([a for a, _ in parts])), ("B", torch.cat([b for _, b in parts], dim=1))]


def _targets(base: PreTrainedModel, wanted: set[str]) -> list[str]:
    """The last parts of the names where they say it all (as other tools expect), else the whole names."""
    short = {path.rsplit(".", 1)[1] for path in wanted}
    meant = {name for name, _ in base.named_modules() if name.rsplit(".", 1)[-1] in short}
    return sorted(short if meant == wanted else wanted)
