"""Three questions about recordings that the model has not been trained on, asked over HTTP."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pyarrow.parquet as pq

from stetholm.corpus.manifest import Manifest
from stetholm.errors import UserError
from stetholm.storage import Storage

TEXT_COLUMNS = ["sample_id", "instruction", "response", "task", "dataset", "recording_ids"]
TIMEOUT_S = 120.0
MAX_TOKENS = 96
SHORT_TASKS = ("Classification", "Identification")
"""Tasks whose answer is a label; asked first, because one sees at once whether the answer is right."""


@dataclass(frozen=True)
class Question:
    """One row of the corpus, with its recordings."""

    kind: str
    """What it was chosen for, e.g. ``a normal heart``."""
    instruction: str
    reference: str
    recordings: tuple[bytes, ...]
    """FLAC."""
    task: str
    source: str
    """Which recordings: data set and ids."""


def about_heart(row: dict[str, Any]) -> bool:
    """Whether a row speaks of the heart."""
    return re.search(r"\bheart|murmur|cardiac\b", said(row)) is not None


def abnormal(row: dict[str, Any]) -> bool:
    """Whether the reference answer speaks of something abnormal."""
    return re.search(r"abnormal|murmur|stenosis|regurgitation|wheez|crackl|defect", no_denials(row)) is not None


def normal(row: dict[str, Any]) -> bool:
    """Whether the reference answer says normal, and nothing abnormal."""
    return re.search(r"\bnormal\b", row["response"].lower()) is not None and not abnormal(row)


def no_denials(row: dict[str, Any]) -> str:
    """The reference answer in lower case without ``no …`` and ``without …``, which name what is absent."""
    return re.sub(r"\b(no|not|without)\b[^.;]*", " ", row["response"].lower())


def said(row: dict[str, Any]) -> str:
    """Instruction and reference answer in lower case."""
    return f"{row['instruction']} {row['response']}".lower()


def several(row: dict[str, Any]) -> bool:
    """Whether a row compares recordings."""
    return len(row["recording_ids"]) > 1


WANTED: tuple[tuple[str, Callable[[dict[str, Any]], bool]], ...] = (
    ("a normal heart", lambda row: about_heart(row) and normal(row) and not several(row)),
    ("an abnormal heart", lambda row: about_heart(row) and abnormal(row) and not several(row)),
    ("a comparison, or a lung", lambda row: several(row) or not about_heart(row)),
)


def choose(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """One row for each of :data:`WANTED`, short answers first; any other row where there is no such one."""
    rest = sorted(rows, key=lambda row: (row["task"] not in SHORT_TASKS, row["sample_id"]))
    chosen = []
    for kind, fits in WANTED:
        row = next(filter(fits, rest), None)
        if row is None:
            kind, row = "another recording", next(iter(rest), None)
        if row is not None:
            rest.remove(row)
            chosen.append((kind, row))
    return chosen


def text_rows(storage: Storage, uris: list[str]) -> list[dict[str, Any]]:
    """The rows of these shards without audio, each with the shard that it lies in."""
    fs = storage.arrow_reader()
    return [
        {**row, "shard": uri}
        for uri in uris
        for row in pq.read_table(storage.key(uri), columns=TEXT_COLUMNS, filesystem=fs).to_pylist()
    ]


def audio_of(storage: Storage, row: dict[str, Any]) -> tuple[bytes, ...]:
    """The recordings of one row (FLAC); reads no more row groups than it must."""
    with storage.arrow_reader().open_input_file(storage.key(row["shard"])) as opened:
        file = pq.ParquetFile(opened)
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["sample_id"])["sample_id"].to_pylist()
            if row["sample_id"] in ids:
                audio = file.read_row_group(group, columns=["audio"])["audio"]
                return tuple(audio[ids.index(row["sample_id"])].as_py())
    raise UserError(f"sample {row['sample_id']} is not in {row['shard']}")


def questions(storage: Storage, corpus_uri: str, split: str = "test") -> list[Question]:
    """Up to three questions on recordings of ``split``."""
    shards = Manifest.load(storage, corpus_uri).split(split).shards
    rows = text_rows(storage, [f"{corpus_uri}/{shard.path}" for shard in shards])
    return [
        Question(
            kind,
            row["instruction"],
            row["response"],
            audio_of(storage, row),
            row["task"],
            f"{row['dataset']}: {', '.join(name[:12] for name in row['recording_ids'])}",
        )
        for kind, row in choose(rows)
    ]


def body(question: Question, model: str) -> dict[str, Any]:
    """The request that OpenAI's chat completions take for this question."""
    sounds = [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(flac).decode("ascii"), "format": "flac"}}
        for flac in question.recordings
    ]
    content = [*sounds, {"type": "text", "text": question.instruction}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }


def ask(url: str, asked: list[Question]) -> Iterator[tuple[Question, str]]:
    """Ask the endpoint at ``url``; yields each question with the model's answer.

    Raises:
        UserError: the endpoint refused a question; the message holds its status and its error.
    """
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        for question in asked:
            answer = client.post("/v1/chat/completions", json=body(question, model))
            if answer.status_code != 200:
                raise UserError(f"the endpoint answered {answer.status_code}: {answer.text[:300]}")
            yield question, " ".join(answer.json()["choices"][0]["message"]["content"].split())
