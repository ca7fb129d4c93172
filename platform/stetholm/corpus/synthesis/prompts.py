"""The prompts: one file a task, with the facts of the recordings filled in. Files of one's own take their place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import get_args

from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Recording
from stetholm.corpus.synthesis.plan import Planned
from stetholm.errors import UserError
from stetholm.settings import Task

Message = dict[str, str]
SYSTEM, AGAIN = "system.txt", "again.txt"
TOLD = (STATUS, FINDING, DIAGNOSIS, "severity", "murmur timing", "murmur shape", "murmur pitch", "murmur quality")
"""Labels that a prompt tells. Nothing of the patient, whose data stay here."""


def file_of(task: Task) -> str:
    """Name of a task's file, e.g. ``differential_diagnosis.txt``."""
    return f"{task.lower().replace(' ', '_')}.txt"


FILES = (SYSTEM, AGAIN, *(file_of(task) for task in get_args(Task)))


@dataclass(frozen=True)
class Turn:
    """What the writer answered, and why that was not usable."""

    text: str
    reason: str


@dataclass(frozen=True)
class Prompts:
    """The texts of all files, by their names."""

    texts: Mapping[str, str]

    @classmethod
    def load(cls, folder: str | None = None) -> Prompts:
        """The package's prompts, those of ``folder`` in their place.

        Raises:
            UserError: there is no such folder, it holds no prompt, or one of it cannot be filled in.
        """
        here = files(__package__).joinpath("prompts")
        texts = {name: here.joinpath(name).read_text("utf-8") for name in FILES}
        if folder is not None:
            own = {name: Path(folder, name) for name in FILES if Path(folder, name).is_file()}
            if not own:
                raise UserError(f"synthesize.prompts: {folder} holds none of {', '.join(FILES)}")
            texts |= {name: path.read_text("utf-8") for name, path in own.items()}
        _check(texts)
        return cls(texts)

    @property
    def sha256(self) -> str:
        """Of all texts: other prompts write other pairs."""
        return hashlib.sha256(json.dumps(dict(self.texts), sort_keys=True).encode()).hexdigest()

    def messages(self, planned: Planned, turns: Sequence[Turn] = ()) -> list[Message]:
        """The conversation that asks for a pair; after answers that were not usable it goes on with the last one."""
        first = planned.recordings[0]
        fields = {"facts": facts(planned), "kind": first.kind, "site": first.site or ""}
        asked = [_message("system", self.texts[SYSTEM].strip()),
                 _message("user", Template(self.texts[file_of(planned.task)]).substitute(fields).strip())]  # fmt: skip
        if turns:
            told = Template(self.texts[AGAIN]).substitute(reason=turns[-1].reason).strip()
            asked += [_message("assistant", turns[-1].text), _message("user", told)]
        return asked


def facts(planned: Planned) -> str:
    """What the writer is told of the recordings, a line each where there are two."""
    lines = [_facts(recording) for recording in planned.recordings]
    if len(lines) == 1:
        return lines[0].replace("; ", "\n")
    return "\n".join(f"audio {number}: {line}" for number, line in enumerate(lines, start=1))


def _facts(recording: Recording) -> str:
    known = {"sound": recording.kind, "site": recording.site, **{name: recording.labels.get(name) for name in TOLD}}
    return "; ".join(f"{name}: {value}" for name, value in known.items() if value)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _check(texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        known = {"reason"} if name == AGAIN else set() if name == SYSTEM else {"facts", "kind", "site"}
        template = Template(text)
        if not template.is_valid() or (name != SYSTEM and set(template.get_identifiers()) - known):
            raise UserError(
                f"synthesize.prompts: {name} has a $ that is none of {sorted(known)}; write $$ for a dollar"
            )
        needed = "reason" if name == AGAIN else "facts" if name != SYSTEM else None
        if needed and needed not in template.get_identifiers():
            raise UserError(f"synthesize.prompts: {name} does not say where ${needed} goes")
