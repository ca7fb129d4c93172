"""The evaluation job: generate over a split, score, write the table.

    python jobs/evaluate.py --set run.name=demo --set evaluate.split=test

Writes ``runs/<run.name>/evaluate/``: ``report.json``, ``table.md``, ``predictions.parquet`` and, with
``evaluate.gate``, ``gate.json``.
"""

from __future__ import annotations

from typing import Any

from stetholm.errors import UserError
from stetholm.evaluation.conditions import AUDIO, CONDITIONS, derangement, question
from stetholm.evaluation.examples import Example, choose, read_examples
from stetholm.evaluation.gate import check_gate, judge_gate
from stetholm.evaluation.generation import Answers, write_parquet
from stetholm.evaluation.job import GenerationJob
from stetholm.evaluation.metrics import BertScorer
from stetholm.evaluation.scoring import Scored, binary, figures, grouped, score, to_table
from stetholm.evaluation.table import print_table, to_markdown
from stetholm.runs import corpus_uri, require_checkpoint
from stetholm.serving.engine import Sampling
from stetholm.settings import Settings
from stetholm.storage import Storage

JOB = "evaluate"

FIGURES_DEPEND_ON = {"split", "max_examples", "max_new_tokens", "controls", "scorer"}
"""The settings below ``evaluate`` without which a finished evaluation is another one; not its gate or batch size."""


def evaluate(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Evaluate the run's checkpoint, print the table and return the figures.

    Returns:
        ``output`` (URI), ``overall`` (figures and, as ``controls``, those of the control rows), ``tasks``,
        ``binary_accuracy`` by condition, ``examples``, ``samples_per_second``, ``gate``.

    Raises:
        UserError: no checkpoint, no corpus, an empty or unknown split, a gate or scorer that is none.
    """
    if settings.evaluate.judge:
        raise UserError("evaluate.judge: this version has no judge yet; leave it out (label accuracy needs none)")
    check_gate(settings.evaluate.gate or {})
    checkpoint, corpus = require_checkpoint(settings, storage), corpus_uri(settings, storage)
    chosen = settings.evaluate.model_dump(include=FIGURES_DEPEND_ON)
    job = GenerationJob(JOB, settings, storage, checkpoint, corpus, settings.evaluate.split, chosen)
    result = job.once(lambda: _run(job))
    report = storage.read_json(f"{result['output']}/report.json")
    print_table(report)
    return {**result, **_gate(settings, storage, report, str(result["output"]))}


def _run(job: GenerationJob) -> dict[str, Any]:
    settings, storage, output = job.settings, job.storage, job.output
    scorer = BertScorer(settings.evaluate.scorer)  # before the long part: a wrong name shows at once
    everything = read_examples(storage, job.corpus, job.split)
    examples = choose(everything, settings.evaluate.max_examples, settings.run.seed)
    predictions, answers = _predict(job, examples, everything)
    scored = score(examples, predictions, scorer)
    report = _report(settings, job.checkpoint, scorer.name, scored, list(predictions), len(everything))
    write_parquet(storage, f"{output}/predictions.parquet", to_table(scored, list(predictions)))
    storage.write_text(f"{output}/table.md", to_markdown(report))
    storage.write_json(f"{output}/report.json", report)
    return _result(output, report, answers)


def _predict(
    job: GenerationJob, examples: list[Example], everything: list[Example]
) -> tuple[dict[str, list[str | None]], Answers]:
    """Predictions of every condition for every example."""
    chosen, seed = job.settings.evaluate, job.settings.run.seed
    conditions = CONDITIONS if chosen.controls else (AUDIO,)
    exchanged = derangement(examples, seed)
    sampling = Sampling(max_new_tokens=chosen.max_new_tokens)
    asked = {name: [question(example, name, exchanged, sampling) for example in examples] for name in conditions}
    questions = [one for column in asked.values() for one in column if one is not None]
    answers = job.ask(questions, examples, everything, "questions", chosen.batch_size)
    return {n: [None if q is None else answers.of(q)[0] for q in column] for n, column in asked.items()}, answers


def _report(
    settings: Settings, checkpoint: str, scorer: str, scored: list[Scored], conditions: list[str], rows: int
) -> dict[str, Any]:
    """Everything the table and the gate need."""
    return {
        "checkpoint": checkpoint,
        "split": settings.evaluate.split,
        "examples": len(scored),
        "split_rows": rows,
        "scorer": scorer,
        "decoding": {"max_new_tokens": settings.evaluate.max_new_tokens, "temperature": 0.0},
        "overall": {name: figures(scored, name) for name in conditions},
        "tasks": grouped(scored, lambda example: example.task, conditions),
        "datasets": grouped(scored, lambda example: example.dataset, conditions),
        "distributions": grouped(scored, lambda example: example.distribution, conditions),
        "binary": binary(scored, conditions),
    }


def _result(output: str, report: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """What the job prints."""
    overall = dict(report["overall"])
    audio = overall.pop(AUDIO)
    result = {
        "output": output,
        "examples": report["examples"],
        "scorer": report["scorer"],
        "overall": {**audio, "controls": overall},
        "tasks": {task: by_condition[AUDIO] for task, by_condition in report["tasks"].items()},
        "binary_accuracy": {name: report["binary"][name]["accuracy"] for name in report["overall"]},
    }
    if answers.made:
        result["answers_per_second"] = round(answers.made / answers.seconds, 3)
    return result


def _gate(settings: Settings, storage: Storage, report: dict[str, Any], output: str) -> dict[str, Any]:
    """Write ``gate.json`` and say whether the checkpoint passed; nothing where no gate is set."""
    if not settings.evaluate.gate:
        return {}
    verdict = judge_gate(settings.evaluate.gate, report)
    storage.write_json(f"{output}/gate.json", verdict)
    return {"gate": {"passed": verdict["passed"], "failed": [c["name"] for c in verdict["checks"] if not c["passed"]]}}
