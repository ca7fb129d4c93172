"""The settings that somebody gave, as other formats carry them: ``key=value``, environment variables, a tree."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from stetholm.settings import Settings
from stetholm.settings.load import ENVIRONMENT_PREFIX

SECRETS = ("storage.access_key", "storage.secret_key")
"""Never rendered: nodes get them as their environment, from a Secret or a role."""


def given(settings: Settings) -> dict[str, Any]:
    """What somebody set, by dotted key, in the tree's order.

    The storage's keys are left out: a manifest is read by many.
    """
    return dict(_walk(settings, ""))


def _walk(part: BaseModel, above: str) -> Iterator[tuple[str, Any]]:
    for name in type(part).model_fields:
        if name not in part.model_fields_set:
            continue
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{above}{name}.")
        elif above + name not in SECRETS:
            yield above + name, _plain(value)


def _plain(value: Any) -> Any:
    """As JSON has it: lists, and mappings of sections as what somebody set in them."""
    if isinstance(value, dict):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    return list(value) if isinstance(value, tuple) else value


def has_secrets(settings: Settings) -> bool:
    """Whether the storage's keys are given, which no rendering carries."""
    return settings.storage.access_key is not None or settings.storage.secret_key is not None


def pairs(settings: Settings) -> list[str]:
    """``key=value`` as ``--set`` takes them."""
    return [f"{key}={_text(value)}" for key, value in given(settings).items()]


def environment(settings: Settings) -> dict[str, str]:
    """As environment variables: ``STETHOLM_TRAIN__WORKERS`` and so on."""
    return {ENVIRONMENT_PREFIX + key.upper().replace(".", "__"): _text(value) for key, value in given(settings).items()}


def flat(tree: Mapping[str, Any], above: str = "") -> list[str]:
    """``key=value`` of a tree as it stands in a file."""
    found = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{above}{key}.")
        else:
            found.append(f"{above}{key}={_text(value)}")
    return found


def _text(value: Any) -> str:
    """JSON, which is YAML too; plain text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
