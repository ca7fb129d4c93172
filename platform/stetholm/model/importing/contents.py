"""What a weights file holds, by our names; every key of it is accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stetholm.errors import UserError
from stetholm.model.importing.layouts import HEAD, LANGUAGE, Layout

LORA = ".lora_"
_USUAL = ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"})
"""Layers that get an adapter where no setting names others."""
_HALVES = {torch.float16, torch.bfloat16}


@dataclass
class Contents:
    """The weights of a file.

    Attributes:
        layout: by which it was read.
        tensors: by our names, without ``base_layer``; as they lie in the file.
        keys: the file's key of each.
        repeated: keys that hold once more what another one holds.
        unused: keys that are known and not needed.
        unknown: keys that stand for nothing we know.
        contradictory: pairs of keys for one weight that differ.
    """

    layout: Layout
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    contradictory: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor], layout: Layout) -> Contents:
        """Sort the keys of ``state``."""
        contents = cls(layout)
        # MedGemma's text part is there twice. Where the two differ, ``lm`` counts: the published code computes with it.
        for key in sorted(state, key=lambda key: key.startswith("medgemma_full.")):
            place = layout.place(key)
            if layout.unused.fullmatch(key):
                contents.unused.append(key)
            elif place is None:
                contents.unknown.append(key)
            else:
                contents.put(place, key, state[key])
        return contents

    def put(self, name: str, key: str, tensor: torch.Tensor) -> None:
        """Take ``tensor``, which the file calls ``key``, as our weight ``name``."""
        if name not in self.tensors:
            self.tensors[name], self.keys[name] = tensor, key
        elif _equal(tensor, self.tensors[name]):
            self.repeated.append(key)
        else:
            self.contradictory.append(f"{key} and {self.keys[name]}")

    def move(self, name: str, to: str) -> None:
        """Take our weight ``name``, if it is there, as ``to``."""
        if name in self.tensors:
            self.put(to, self.keys.pop(name), self.tensors.pop(name))

    @property
    def has_lora(self) -> bool:
        """Whether there are adapters."""
        return any(LORA in name for name in self.tensors)

    @property
    def has_language_model(self) -> bool:
        """Whether there are weights of the language model itself."""
        return any(True for _ in self._language())

    @property
    def language_dtype(self) -> torch.dtype:
        """The type of the language model's own weights; float32 where there are several."""
        found = {tensor.dtype for tensor in self._language()}
        return found.pop() if len(found) == 1 and found <= _HALVES else torch.float32

    def lora_size(self) -> dict[str, Any]:
        """``r`` of the adapters, and ``targets``, the layers that have one; nothing without adapters.

        Raises:
            UserError: they are of several ranks.
        """
        halves = {name: tensor for name, tensor in self.tensors.items() if ".lora_A." in name and tensor.dim() == 2}
        ranks = sorted({len(tensor) for tensor in halves.values()})
        if len(ranks) > 1:
            raise UserError(f"import_weights.weights: its LoRA adapters are of several ranks ({ranks}): not supported")
        if not ranks:
            return {}
        targets = {name.partition(LORA)[0].rpartition(".")[2] for name in halves}
        return {"r": ranks[0], "targets": None if targets in _USUAL else tuple(sorted(targets))}

    def _language(self) -> Iterator[torch.Tensor]:
        for name, tensor in self.tensors.items():
            if name.startswith((LANGUAGE, HEAD)) and LORA not in name:
                yield tensor


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return torch.equal(one, other) if one.dtype == other.dtype else torch.equal(one.double(), other.double())
