"""Putting a file's weights into a model: what fits where, and the copy."""

from __future__ import annotations

import torch

from stetholm.model.importing.contents import LORA, Contents
from stetholm.model.importing.report import ImportReport
from stetholm.model.loading import is_own
from stetholm.model.modeling_stetholm import StethoLMForConditionalGeneration


def place(contents: Contents, model: StethoLMForConditionalGeneration) -> ImportReport:
    """Copy into ``model`` what fits, converted to its types, and tell what became of everything.

    ``contents`` loses what does not fit.
    """
    targets = _targets(model)
    _untie(contents, model)
    missing = tuple(name for name in targets if _expected(name, contents) and name not in contents.tensors)
    problems: dict[str, list[str]] = {"unknown": [], "misshapen": [], "not_finite": []}
    for name in list(contents.tensors):
        problem, said = _problem(name, contents, targets)
        if problem:
            problems[problem].append(said)
            del contents.tensors[name], contents.keys[name]
    _copy(contents, targets)
    fresh = (name for name in targets if is_own(name) and name not in contents.tensors)
    return ImportReport(
        layout=contents.layout.name,
        imported=tuple(contents.keys.values()),
        repeated=tuple(contents.repeated),
        unused=tuple(contents.unused),
        fresh=tuple(name for name in fresh if name not in missing),
        unknown=(*contents.unknown, *problems["unknown"]),
        missing=missing,
        misshapen=tuple(problems["misshapen"]),
        contradictory=tuple(contents.contradictory),
        not_finite=tuple(problems["not_finite"]),
    )


def _targets(model: StethoLMForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The model's tensors by name, without PEFT's ``base_layer``; one name of those that are tied."""
    tied = set(_tied(model))
    return {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if name not in tied}


def _tied(model: StethoLMForConditionalGeneration) -> dict[str, str]:
    """Names of tied weights, and of what they are tied to."""
    return dict(model.all_tied_weights_keys or {})


def _untie(contents: Contents, model: StethoLMForConditionalGeneration) -> None:
    """A head that is the embedding matrix may be in the file under either name, or under both."""
    for name, source in _tied(model).items():
        contents.move(name, source)


def _expected(name: str, contents: Contents) -> bool:
    """Whether a file of this layout should bring our weight ``name``."""
    if name.startswith(contents.layout.holds):
        return True
    if not contents.layout.has_language_model:
        return False
    if LORA in name:
        return contents.has_lora or not contents.has_language_model
    return contents.has_language_model


def _problem(name: str, contents: Contents, targets: dict[str, torch.Tensor]) -> tuple[str, str]:
    """Why the weight ``name`` cannot be taken and how to say it; two empty strings if it can."""
    tensor, key, target = contents.tensors[name], contents.keys[name], targets.get(name)
    if target is None:
        return "unknown", key
    if tensor.shape != target.shape or tensor.is_floating_point() != target.is_floating_point():
        found, expected = (f"{tuple(each.shape)} {each.dtype}".replace("torch.", "") for each in (tensor, target))
        return "misshapen", f"{key}: {found}, expected {expected}"
    if not torch.isfinite(tensor).all():
        return "not_finite", key
    return "", ""


@torch.no_grad()
def _copy(contents: Contents, targets: dict[str, torch.Tensor]) -> None:
    for name, tensor in contents.tensors.items():
        targets[name].copy_(tensor)
