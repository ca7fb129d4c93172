"""Reading the settings tree: ``cluster.yaml`` < environment < ``--set``.

The file's settings lie under its ``metadata.stetholm``; ``STETHOLM_TRAIN__MAX_STEPS=5`` in the environment wins over
them, and ``--set train.max_steps=5`` over both. Whatever is wrong is one line that names the key and its source.
"""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from stetholm.errors import UserError
from stetholm.settings.base import EMBEDDED
from stetholm.settings.tree import Settings

DEFAULT_CONFIG = "cluster.yaml"
"""Read from the current directory when no file is named and it is there."""

ENVIRONMENT_PREFIX = "STETHOLM_"

AWS_FALLBACKS = {
    "access_key": ("AWS_ACCESS_KEY_ID",),
    "secret_key": ("AWS_SECRET_ACCESS_KEY",),
    "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
}
"""The usual AWS variables, read for ``storage.*`` keys that are set nowhere else and only for an s3:// storage."""

_Key = tuple[str, ...]

_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises: its own, and others for a date like 2024-99-99 or thousands of brackets."""


class SettingsError(UserError):
    """A setting that does not exist, has the wrong type, or stands in a file that cannot be read."""


@dataclass(frozen=True)
class _Entry:
    """One value somebody set: where in the tree, what, and where it was written."""

    key: _Key
    value: Any
    origin: str


def load_settings(
    config: Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings of a job.

    Args:
        config: a YAML file; default ``cluster.yaml`` in the current directory if it exists.
        overrides: ``key=value`` strings, as given to ``--set``; values are YAML scalars or lists.
        environ: default ``os.environ``.

    Raises:
        SettingsError: one line that names the key, its source and, for an unknown key, the nearest valid one.
    """
    environ = os.environ if environ is None else environ
    written = [*_from_environment(environ), *map(_from_override, overrides)]
    entries = [*_from_file(config), *itertools.chain.from_iterable(map(_opened, written))]
    for entry in entries:
        _require_known(entry)
    tree = _merge(entries)
    _fill_from_aws(tree, environ)
    return _validate(tree, {entry.key: entry.origin for entry in entries})


# --- sources -------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice: YAML would drop the first silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _from_file(config: Path | None) -> Iterator[_Entry]:
    """Entries of the file's ``metadata.stetholm``."""
    if config is None:
        config = Path(DEFAULT_CONFIG)
        if not config.is_file():
            return
    content = _read_yaml(config)
    for part in ("metadata", "stetholm"):
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise SettingsError(f"{config}: {_above(part)} must be a mapping, not {_kind(content)}")
        content = content.get(part)
    if content is None:
        return
    if not isinstance(content, dict):
        raise SettingsError(f"{config}: metadata.stetholm must be a mapping, not {_kind(content)}")
    yield from _flatten(content, (), f"{config}: metadata.stetholm")


def _above(part: str) -> str:
    return "the file" if part == "metadata" else "metadata"


def _read_yaml(config: Path) -> Any:
    try:
        text = config.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{config}: no such settings file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config}: cannot be read: {_one_line(error)}") from None
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except _YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or _one_line(error)
        raise SettingsError(f"{config}{line}: not valid YAML: {problem}") from None


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Entry]:
    """Entries of variables like ``STETHOLM_TRAIN__MAX_STEPS``; names without ``__`` are not settings."""
    for name in sorted(environ):
        path = name.removeprefix(ENVIRONMENT_PREFIX)
        if name.startswith(ENVIRONMENT_PREFIX) and "__" in path:
            key = _normal(path.lower().split("__"))
            yield _Entry(key, _parse_value(key, environ[name], f"environment variable {name}"), f"environment {name}")


def _from_override(override: str) -> _Entry:
    name, sign, text = override.partition("=")
    if not sign or not name.strip():
        raise SettingsError(f"--set {override!r}: write it as key=value, e.g. --set train.max_steps=5")
    key = _normal(name.strip().split("."))
    return _Entry(key, _parse_value(key, text.strip(), f"--set {name.strip()}"), "--set")


def _parse_value(key: _Key, text: str, origin: str) -> Any:
    """A YAML value; text stays text where the setting is text (``run.name=2024``)."""
    try:
        value = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except _YAML_ERRORS:
        value = text
    if isinstance(value, dict) and _field(key) and not _is_open(_field(key)):
        raise SettingsError(f"{origin}: {'.'.join(key)} takes one value, not a mapping")
    return text if value is not None and _is_text(_field(key)) else value


def _flatten(mapping: Mapping[Any, Any], above: _Key, origin: str) -> Iterator[_Entry]:
    """Entries of a nested mapping; an empty section (only comments in it) sets nothing."""
    for name, value in mapping.items():
        key = (*above, str(name))
        if key in _SECTIONS and isinstance(value, dict):
            yield from _flatten(value, key, origin)
        elif value is not None and key in _PLAIN:
            yield _Entry(_PLAIN[key], value, origin)
        elif key not in _SECTIONS or value is not None:
            yield _Entry(key, value, origin)


def _opened(entry: _Entry) -> Iterator[_Entry]:
    """The entry, or its parts if it sets a whole section (``train={workers: 2}``), or the key it is short for."""
    if entry.key in _SECTIONS and isinstance(entry.value, dict):
        yield from _flatten(entry.value, entry.key, entry.origin)
    else:
        yield _Entry(_PLAIN.get(entry.key, entry.key), entry.value, entry.origin)


# --- the tree of valid keys ----------------------------------------------------------------------------------------


def _walk(model: type[BaseModel], above: _Key = ()) -> Iterator[tuple[_Key, FieldInfo | type[BaseModel]]]:
    for name, field in model.model_fields.items():
        key = (*above, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield key, field.annotation
            yield from _walk(field.annotation, key)
        else:
            yield key, field


_LEAVES: dict[_Key, FieldInfo] = {key: item for key, item in _walk(Settings) if isinstance(item, FieldInfo)}
_SECTIONS: set[_Key] = {key for key, item in _walk(Settings) if not isinstance(item, FieldInfo)}
_PLAIN: dict[_Key, _Key] = {
    key: (*key, str(plain)) for key, item in _walk(Settings) if (plain := getattr(item, "plain_key", None))
}
"""Sections in whose place a plain value may stand, and the key it is for: ``evaluate.judge`` is its ``model``."""


def setting_keys() -> list[str]:
    """All valid dotted keys, in the tree's order, e.g. ``train.max_steps``."""
    return [".".join(key) for key in _LEAVES]


def _field(key: _Key) -> FieldInfo | None:
    return _LEAVES.get(key)


def _options(field: FieldInfo) -> tuple[Any, ...]:
    """The members of a union annotation, or the annotation alone."""
    return get_args(field.annotation) if type(None) in get_args(field.annotation) else (field.annotation,)


def _is_text(field: FieldInfo | None) -> bool:
    return field is not None and any(option in (str, SecretStr) for option in _options(field))


def _is_open(field: FieldInfo | None) -> bool:
    """Whether the setting is itself a mapping with free keys, like ``evaluate.gate``."""
    return field is not None and any(get_origin(option) is dict for option in _options(field))


def _normal(parts: Sequence[str]) -> _Key:
    """The key in the tree; what follows a setting with free keys is one such key, dots and all."""
    for length in range(1, len(parts)):
        if _is_open(_field(tuple(parts[:length]))):
            return (*parts[:length], ".".join(parts[length:]))
    return tuple(parts)


def _require_known(entry: _Entry) -> None:
    key = entry.key
    if key in _LEAVES or (key in _SECTIONS) or _is_open(_field(key[:-1])):
        return
    wrong = ".".join(key)
    raise SettingsError(f"{entry.origin}: unknown setting {wrong!r}; did you mean {_nearest(wrong)!r}?")


def _nearest(wrong: str) -> str:
    """The valid key most like ``wrong``; the section's own name counts when somebody misspelt only that."""
    valid = [*setting_keys(), *(".".join(key) for key in _SECTIONS)]
    return difflib.get_close_matches(wrong, valid, n=1, cutoff=0.0)[0]


# --- merging and checking ------------------------------------------------------------------------------------------


def _merge(entries: Iterable[_Entry]) -> dict[str, Any]:
    """One nested mapping; later entries win, sections and free mappings are merged key by key."""
    tree: dict[str, Any] = {}
    for entry in entries:
        place = tree
        for part in entry.key[:-1]:
            below = place.get(part)
            place[part] = dict(below) if isinstance(below, dict) else {}
            place = place[part]
        old = place.get(entry.key[-1])
        if isinstance(old, dict) and isinstance(entry.value, dict):
            place[entry.key[-1]] = {**old, **entry.value}
        else:
            place[entry.key[-1]] = entry.value
    return tree


def _fill_from_aws(tree: dict[str, Any], environ: Mapping[str, str]) -> None:
    storage = tree.get("storage")
    if not isinstance(storage, dict) or storage.get("uri", EMBEDDED) == EMBEDDED:
        return
    for key, names in AWS_FALLBACKS.items():
        value = next((environ[name] for name in names if environ.get(name)), None)
        if value is not None and storage.get(key) is None:
            storage[key] = value


def _validate(tree: dict[str, Any], origins: Mapping[_Key, str]) -> Settings:
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise SettingsError(f"{_explain(first, origins)}{more}") from None


def _explain(error: Any, origins: Mapping[_Key, str]) -> str:
    """``cluster.yaml: metadata.stetholm: train.max_steps: input should be … (got 'five')``."""
    key: _Key = tuple(str(part) for part in error["loc"])
    origin = next((origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origins), "settings")
    message = error["msg"][:1].lower() + error["msg"][1:]
    got = "" if key[-1].endswith("_key") else f" (got {error['input']!r})"
    return f"{origin}: {'.'.join(key)}: {_one_line(message)}{got}"


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"{value!r}"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
