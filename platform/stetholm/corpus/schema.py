"""One StethoBench pair: an instruction and a response about one or more recordings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, get_args

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from stetholm.settings import Task

TASKS: tuple[str, ...] = get_args(Task)
"""StethoBench's seven tasks; a pair of none of them has the task ``/``."""
NO_TASK: Literal["/"] = "/"
SPLITS: tuple[str, ...] = ("train", "val", "test", "inference")
MAX_LINE_BYTES = 2**20
MAX_RECORDINGS = 16
"""Most recordings in one pair (the published comparisons have two)."""

_TASK_NAMES = {name.lower(): name for name in TASKS} | {"detection": "Identification", "reporting": "Report"}
_DOMAIN_NAMES = {
    "in-domain": "ID",
    "in-distribution": "ID",
    "out-of-domain": "OOD",
    "out-of-distribution": "OOD",
}

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class PairError(ValueError):
    """A line that is no pair; the message is the reason that ``rejects.parquet`` records."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


class Pair(BaseModel):
    """One row of a StethoBench JSON Lines file. Keys that it does not name are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", protected_namespaces=())

    filenames: tuple[Text, ...] = Field(
        validation_alias=AliasChoices("filename", "filenames"), min_length=1, max_length=MAX_RECORDINGS
    )
    """Paths below the audio folder, in the order in which the prompt plays them."""
    instruction: Text
    response: Text
    dataset: Text
    split: Literal["train", "val", "test", "inference"]
    task: Task | Literal["/"] = NO_TASK
    distribution: Literal["ID", "OOD"] = "ID"
    model: str | None = None
    """The language model that wrote the pair."""
    patient: str | None = None
    site: str | None = None
    device: str | None = None

    @field_validator("filenames", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("filenames")
    @classmethod
    def _below_the_folder(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            check_filename(name)
        return value

    @field_validator("task", mode="before")
    @classmethod
    def _task_name(cls, value: Any) -> Any:
        if value is None or value == "":
            return NO_TASK
        return _TASK_NAMES.get(value.strip().lower(), value) if isinstance(value, str) else value

    @field_validator("distribution", mode="before")
    @classmethod
    def _domain_name(cls, value: Any) -> Any:
        if value is None or value == "":
            return "ID"
        return _DOMAIN_NAMES.get(value.lower().replace("_", "-"), value.upper()) if isinstance(value, str) else value


@dataclass(frozen=True)
class Entry:
    """A pair and where it stands."""

    source: str
    line: int
    pair: Pair


@dataclass(frozen=True)
class Reject:
    """What is left out of a corpus, and why: a row of ``rejects.parquet``.

    Attributes:
        source: the file that says it: a list of pairs, a table of labels, a recording.
        line: its line, from 1; 0 where the whole file is meant.
        reason: what is wrong, in one line.
    """

    source: str
    line: int
    reason: str


def check_filename(name: str) -> None:
    """Refuse a path that would leave the audio folder by its spelling alone.

    Raises:
        ValueError: it is absolute, has a ``..`` part, or a control character.
    """
    path = PurePosixPath(name)
    if path.is_absolute():
        raise ValueError(f"path {name[:200]!r} is absolute; it must lie below the audio folder")
    if ".." in path.parts:
        raise ValueError(f"path {name[:200]!r} leaves the audio folder ('..')")
    if not name.isprintable():
        raise ValueError(f"path {name[:200]!r} holds a character that cannot be printed")


def parse_line(raw: bytes, line: int) -> Pair:
    """Parse one line of a StethoBench file.

    Args:
        raw: the line as read, with or without its end.
        line: its number, from 1.

    Raises:
        PairError: with the reason, in one line.
    """
    if len(raw) > MAX_LINE_BYTES:
        raise PairError(line, f"line is longer than {MAX_LINE_BYTES} bytes")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PairError(line, f"invalid UTF-8 at byte {error.start}") from None
    try:
        return Pair.model_validate_json(raw)
    except ValidationError as error:
        raise PairError(line, _reason(error)) from None


def _reason(error: ValidationError) -> str:
    """The first thing wrong with a line, short enough for a table."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return f"not JSON: {first['msg'].removeprefix('Invalid JSON: ')}"[:300]
    field = str(first["loc"][0]) if first["loc"] else "line"
    if first["type"] == "missing":
        return f"field {field!r} is missing"
    return f"field {field!r}: {first['msg'].removeprefix('Value error, ')}"[:400]
