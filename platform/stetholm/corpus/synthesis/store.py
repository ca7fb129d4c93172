"""Answers that have been paid for, kept in storage before anything else is done with them.

Below one URI lie segments: JSON Lines of up to ``SEGMENT_BYTES``, each written by one process and, as it grows, written
anew as a whole, which object storage does at once or not at all. An answer's key is made of the question itself, so a
job that is started again, or asks for more pairs, finds what it has.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stetholm.errors import UserError
from stetholm.storage import Storage

SEGMENT_BYTES = 2**18


@dataclass(frozen=True)
class Answer:
    """What a writer has answered.

    Attributes:
        key: of the question, see :func:`key_of`.
        text: as it came; empty where the writer refused.
        tokens_in: of the prompt, as the writer counts them; 0 if it does not tell.
        tokens_out: of the answer.
        refused: why there is no text.
    """

    key: str
    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    refused: str | None = None


def key_of(writer: str, messages: Sequence[dict[str, str]], **sampling: Any) -> str:
    """32 hex digits that depend on who is asked, and on what, alone."""
    content = json.dumps([writer, list(messages), sampling], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class AnswerStore:
    """Answers by their keys. One process writes at a time (the job holds a lease); any may have written before."""

    def __init__(self, storage: Storage | None = None, uri: str = "") -> None:
        """Read what is there.

        Args:
            storage: where; None keeps the answers in memory, for a writer that costs nothing.
            uri: below which the segments lie.

        Raises:
            UserError: a segment is damaged.
        """
        self._storage, self._uri = storage, uri
        self._token, self._number, self._lines = secrets.token_hex(4), 0, ""
        self._answers: dict[str, Answer] = {}
        self._tokens_in = self._tokens_out = 0
        for segment in storage.list(uri) if storage else ():
            self._read(segment, storage.read_text(segment) if storage else "")

    def _read(self, segment: str, text: str) -> None:
        try:
            for line in text.splitlines():
                self._add(Answer(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{segment} is damaged ({error}): remove it, and what it held is asked again") from error

    def _add(self, answer: Answer) -> None:
        if answer.key not in self._answers:
            self._tokens_in += answer.tokens_in
            self._tokens_out += answer.tokens_out
        self._answers[answer.key] = answer

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of all prompts and of all answers."""
        return self._tokens_in, self._tokens_out

    def keep(self, answers: Iterable[Answer]) -> None:
        """Keep answers; when this returns they are in storage."""
        new = list(answers)
        if self._storage is not None and new:
            if len(self._lines) > SEGMENT_BYTES:
                self._number, self._lines = self._number + 1, ""
            # Line separators other than \n are legal inside JSON strings, and splitlines would cut there.
            lines = self._lines + "".join(f"{json.dumps(asdict(one), ensure_ascii=True)}\n" for one in new)
            self._storage.write_text(f"{self._uri}/{self._token}-{self._number:06d}.jsonl", lines)
            self._lines = lines
        for one in new:
            self._add(one)
