"""The synthesize job: labelled recordings become pairs in StethoBench's format. Run by ``jobs/synthesize.py``.

Writes ``runs/<run.name>/synthesize/``: ``pairs.jsonl`` (what ingest reads), ``rejects.jsonl``, ``summary.json``, and
the ``answers`` as they were paid for. Of the embedded corpus the recordings too, so that ingest finds them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stetholm.corpus.sources import reader_of, source_name
from stetholm.corpus.synthesis.cost import Estimate, price, require_affordable
from stetholm.corpus.synthesis.endpoint_writer import EndpointWriter
from stetholm.corpus.synthesis.local_writer import LocalWriter
from stetholm.corpus.synthesis.output import lines, markdown, sort_out, summary
from stetholm.corpus.synthesis.plan import plan_pairs
from stetholm.corpus.synthesis.prompts import Prompts
from stetholm.corpus.synthesis.recordings import Labelled, read_labelled
from stetholm.corpus.synthesis.rounds import Rounds
from stetholm.corpus.synthesis.store import AnswerStore
from stetholm.corpus.synthesis.writers import TemplateWriter, Writer
from stetholm.errors import UserError
from stetholm.progress import Progress
from stetholm.runs import finished, record, run_uri
from stetholm.settings import Settings
from stetholm.storage import Storage

JOB = "synthesize"
PLAN = ("tasks", "splits", "max_recordings", "pairs_per_recording", "comparisons_per_recording", "retries")
"""Settings that may change under one run.name: what has been answered counts."""


def synthesize(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Write the pairs of the settings' source.

    Returns:
        ``output`` (URI of ``pairs.jsonl``), ``audio`` (what ingest needs as corpus.audio), ``pairs``, ``rejected``,
        ``unanswered``, ``asked``, ``tokens_in``, ``tokens_out``, ``cost``, ``writer``, ``tasks``.

    Raises:
        UserError: the source or the writer cannot be used, it may cost too much, or no pair is valid.
    """
    writer, prompts = _writer(settings), Prompts.load(settings.synthesize.prompts)
    inputs = _inputs(settings, storage, writer, prompts)
    plan = settings.synthesize.model_dump(include=set(PLAN), mode="json")
    done = finished(settings, storage, JOB, inputs)
    if done is not None and done["plan"] == plan and not done["unanswered"]:
        return done
    output = run_uri(settings, storage, JOB)
    result = _run(settings, storage, writer, prompts, output)
    result["plan"] = plan
    record(settings, storage, JOB, result, inputs)
    return result


def _writer(settings: Settings) -> Writer:
    chosen = settings.synthesize
    if chosen.writer == "openai":
        return EndpointWriter(chosen)
    if chosen.writer == "local":
        return LocalWriter(chosen, settings.run.seed, settings.train.use_gpu)
    return TemplateWriter(settings.run.seed)


def _inputs(settings: Settings, storage: Storage, writer: Writer, prompts: Prompts) -> dict[str, Any]:
    """What decides how a pair is written; how many are written may change."""
    chosen = settings.synthesize
    return {
        "source": {source_name(settings): reader_of(settings).inputs(settings, storage)},
        "seed": settings.run.seed,
        "writer": f"{chosen.writer} {writer.name}",
        **({} if chosen.writer == "template" else {
            "prompts": prompts.sha256, "temperature": chosen.temperature, "max_new_tokens": chosen.max_new_tokens,
        }),
    }  # fmt: skip


def _run(settings: Settings, storage: Storage, writer: Writer, prompts: Prompts, output: str) -> dict[str, Any]:
    chosen = settings.synthesize
    with tempfile.TemporaryDirectory(prefix="stetholm-synthesize-") as scratch:
        labelled = read_labelled(settings, storage, Path(scratch))
        plan = plan_pairs(labelled, chosen, settings.run.seed)
        if not plan:
            raise UserError(
                f"no pair can be written: none of {len(labelled.recordings)} recordings in {', '.join(chosen.splits)} "
                f"has the labels that {', '.join(chosen.tasks)} need"
            )
        audio = _audio(settings, storage, Path(scratch), output)
    store = AnswerStore() if writer.free else AnswerStore(storage, f"{output}/answers")
    rounds = Rounds(plan, writer, prompts, store, chosen)
    _announce(rounds, store, settings)
    with _ray(settings):
        rounds.run()
    return _write(rounds, labelled, storage, output, settings, writer) | {"audio": audio}


@contextlib.contextmanager
def _ray(settings: Settings) -> Iterator[None]:
    """Ray, for the writer that needs it."""
    if settings.synthesize.writer != "local":
        yield
        return
    from stetholm.ray_session import ray_session

    with ray_session():
        yield


def _announce(rounds: Rounds, store: AnswerStore, settings: Settings) -> None:
    """Say what it may cost, and refuse what costs too much. Only what is not answered yet counts."""
    chosen = settings.synthesize
    with Progress("judge answers", len(rounds.cases), "pairs") as progress:
        asks = rounds.open_questions(progress if len(store) else None)
    estimate = Estimate.of([ask.messages for ask in asks], chosen)
    spent = price(*store.tokens, chosen)
    kept = f"{len(store):,} answers are there already; " if len(store) else ""
    if chosen.writer != "template":
        print(f"synthesize: {len(rounds.cases):,} pairs; {kept}{estimate.line(chosen)}", flush=True)
    require_affordable(spent, estimate, chosen)


def _audio(settings: Settings, storage: Storage, scratch: Path, output: str) -> str:
    """Where ingest finds the recordings; those of the embedded corpus are brought to storage."""
    if source_name(settings) != "synthetic":
        return str(settings.corpus.audio)
    where = f"{output}/recordings"
    files = sorted(path for path in scratch.rglob("*.wav"))
    missing = {path.relative_to(scratch).as_posix() for path in files} - {
        uri.removeprefix(f"{where}/") for uri in storage.list(where)
    }
    if missing:
        with Progress("upload recordings", 1, "folder") as progress:
            for folder in sorted({path.parent for path in files}):
                storage.upload_dir(folder, f"{where}/{folder.relative_to(scratch).as_posix()}")
            progress.update(1)
    return where


def _write(
    rounds: Rounds, labelled: Labelled, storage: Storage, output: str, settings: Settings, writer: Writer
) -> dict[str, Any]:
    pairs, rejects, unanswered = sort_out(rounds.cases, writer.name)
    figures = summary(rounds.cases, pairs, rejects, settings.synthesize)
    unusable = [{"source": one.source, "line": one.line, "reason": one.reason} for one in labelled.rejects]
    storage.write_text(f"{output}/rejects.jsonl", lines(rejects))
    storage.write_json(f"{output}/summary.json", {"writer": writer.name, "tasks": figures, "unusable": unusable})
    print(markdown(figures), flush=True)
    if not pairs:
        first = rejects[0]["reason"] if rejects else unanswered[0].unanswered
        raise UserError(
            f"no pair is valid of {len(rounds.cases)} that were asked for ({output}/rejects.jsonl); the first: {first}"
        )
    storage.write_text(f"{output}/pairs.jsonl", lines(pairs))
    total = figures["all"]
    return {
        "output": f"{output}/pairs.jsonl",
        "writer": writer.name,
        "pairs": len(pairs),
        "rejected": len(rejects),
        **{key: total[key] for key in ("unanswered", "asked", "tokens_in", "tokens_out", "cost")},
        "tasks": {task: one["valid"] for task, one in figures.items() if task != "all"},
    }
