"""The evaluation job: generate over a split, score, judge, write tables and pictures, hold against the gate.

    python jobs/evaluate.py --set run.name=demo --set evaluate.split=test

Writes ``runs/<run.name>/evaluate/``: ``report.json``, ``table.md`` (short) and ``report.md``, ``report.png``,
``predictions.parquet``, with ``evaluate.compare_to`` ``comparison.json`` and ``comparison.md``, and with
``evaluate.gate`` ``gate.json``, which is written beside the checkpoint too. docs/evaluation.md says what they mean.
"""

from __future__ import annotations

import sys
from typing import Any

from stetholm.errors import UserError
from stetholm.evaluation.compare import Evaluation, compare, find_evaluation, read_evaluation, to_markdown
from stetholm.evaluation.conditions import ASKED, AUDIO, CONDITIONS, UNTOUCHED, derangement, question
from stetholm.evaluation.examples import Example, choose, read_examples
from stetholm.evaluation.gate import GateRules, check_gate, judge_gate
from stetholm.evaluation.generation import Answers
from stetholm.evaluation.job import GenerationJob
from stetholm.evaluation.judge import Judge, identity, read_prompt
from stetholm.evaluation.judging import judge_all, judge_report
from stetholm.evaluation.markdown_report import full_report, published_table
from stetholm.evaluation.report import make_report
from stetholm.evaluation.scorer_pool import PooledBertScorer
from stetholm.evaluation.scoring import Draws, Scored, score, to_table
from stetholm.evaluation.seen import Seen, find_seen, require_unseen
from stetholm.evaluation.signoff import sign_off
from stetholm.evaluation.table import print_table
from stetholm.evaluation.table import to_markdown as short_table
from stetholm.evaluation.untouched import base_model, untouched_answers, untouched_store
from stetholm.runs import corpus_uri, require_checkpoint
from stetholm.serving.engine import Sampling
from stetholm.settings import Settings
from stetholm.storage import Storage

JOB = "evaluate"

FIGURES_DEPEND_ON = {
    "split", "tasks", "max_examples", "max_new_tokens", "num_beams", "length_penalty", "controls", "untouched",
    "scorer", "draws", "allow_seen_patients",
}  # fmt: skip
"""The settings below ``evaluate`` without which a finished evaluation is another one; not its gate or batch size."""

DECODING = {"max_new_tokens", "num_beams", "length_penalty"}


def evaluate(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Evaluate the run's checkpoint, print the table and return the figures.

    Returns:
        ``output`` (URI), ``overall`` (figures and, as ``controls``, those of the control rows), ``tasks``,
        ``binary_accuracy`` by condition, ``classes``, ``judge``, ``examples``, ``answers_per_second``, ``comparison``,
        ``gate``.

    Raises:
        UserError: no checkpoint, no corpus, an empty or unknown split, a gate, scorer or judge that is none, or a
            checkpoint that was trained on patients of the split.
    """
    chosen = settings.evaluate
    rules = check_gate(chosen.gate or {})
    _require_sense(settings, rules)
    others = _others(settings, storage, rules)
    checkpoint, corpus = require_checkpoint(settings, storage), corpus_uri(settings, storage)
    job = GenerationJob(JOB, settings, storage, checkpoint, corpus, chosen.split, _depends_on(settings))
    result = job.once(lambda: _run(job))
    output = str(result["output"])
    report = storage.read_json(f"{output}/report.json")
    print_table(report)
    return {**result, **_compared(job, output, others), **_gated(job, output, rules, others)}


def _depends_on(settings: Settings) -> dict[str, Any]:
    chosen = settings.evaluate
    judge = None
    if chosen.judge.model:
        prompt = read_prompt(chosen.judge.prompt, "evaluate.judge.prompt")
        judge = {**identity(chosen.judge, prompt), "controls": chosen.judge.controls}
    figures = chosen.model_dump(include=FIGURES_DEPEND_ON)
    if chosen.num_beams == 1:  # as runs have it that were done before there were beams
        del figures["num_beams"], figures["length_penalty"]
    return {**figures, "judge": judge}


def _require_sense(settings: Settings, rules: GateRules) -> None:
    """Refuse what would be found out only after an hour.

    Raises:
        UserError: a judge without a model, or a gate on what this evaluation does not measure.
    """
    chosen = settings.evaluate
    if not chosen.judge.model and (chosen.judge.base_url or chosen.judge.prompt):
        raise UserError("evaluate.judge: a judge needs a model: set evaluate.judge.model (or evaluate.judge=<model>)")
    if rules.margin is not None and not chosen.controls:
        raise UserError("evaluate.gate.margin needs the control rows: leave out evaluate.controls=false")
    if rules.metric == "clinical_accuracy" and not chosen.judge.model:
        raise UserError("evaluate.gate.metric=clinical_accuracy needs a judge: set evaluate.judge")


def _others(settings: Settings, storage: Storage, rules: GateRules) -> dict[str, str]:
    """URIs of the evaluations that this one is held against, by setting; they must be there before the work begins."""
    named = {"evaluate.compare_to": settings.evaluate.compare_to, "evaluate.gate.serving": rules.serving}
    return {setting: find_evaluation(uri, storage, setting) for setting, uri in named.items() if uri}


def _run(job: GenerationJob) -> dict[str, Any]:
    settings, storage, chosen = job.settings, job.storage, job.settings.evaluate
    scorer = PooledBertScorer(chosen.scorer, settings.train.use_gpu)  # before the long part: a wrong name shows at once
    judge = Judge(chosen.judge, storage, use_gpu=settings.train.use_gpu) if chosen.judge.model else None
    everything = read_examples(storage, job.corpus, job.split)
    examples = choose(_of_tasks(job, everything), chosen.max_examples, settings.run.seed)
    seen = find_seen(job.checkpoint, storage, examples)
    require_unseen(seen, job.checkpoint, job.split, chosen.allow_seen_patients)
    predictions, answers = _predict(job, examples, everything)
    scored = score(examples, predictions, scorer)
    if judge is not None:
        judge_all(judge, scored, [name for name in predictions if name == AUDIO or chosen.judge.controls])
    result = _write(job, scored, list(predictions), scorer.name, judge, seen, len(everything), answers)
    untouched_store(job).remove()
    return result


def _of_tasks(job: GenerationJob, everything: list[Example]) -> list[Example]:
    """Those of ``evaluate.tasks``.

    Raises:
        UserError: the split has none of them.
    """
    wanted = job.settings.evaluate.tasks
    if wanted is None:
        return everything
    found = [example for example in everything if example.task in wanted]
    if not found:
        there = ", ".join(sorted({example.task for example in everything}))
        raise UserError(f"evaluate.tasks: split {job.split!r} has no {', '.join(wanted)}; it has: {there}")
    return found


def _predict(
    job: GenerationJob, examples: list[Example], everything: list[Example]
) -> tuple[dict[str, list[str | None]], Answers]:
    """Predictions of every condition for every example."""
    chosen, seed = job.settings.evaluate, job.settings.run.seed
    conditions = ASKED if chosen.controls else (AUDIO,)
    exchanged = derangement(examples, seed)
    sampling = Sampling(chosen.max_new_tokens, num_beams=chosen.num_beams, length_penalty=chosen.length_penalty)
    asked = {name: [question(example, name, exchanged, sampling) for example in examples] for name in conditions}
    questions = [one for column in asked.values() for one in column if one is not None]
    answers = job.ask(questions, examples, everything, "questions", chosen.batch_size)
    found = {n: [None if q is None else answers.of(q)[0] for q in column] for n, column in asked.items()}
    return {**found, **_untouched(job, examples)}, answers


def _untouched(job: GenerationJob, examples: list[Example]) -> dict[str, list[str | None]]:
    """Answers of the language model as it was; nothing where that is not wanted, or not known."""
    if not (job.settings.evaluate.controls and job.settings.evaluate.untouched):
        return {}
    model = base_model(job.checkpoint, job.storage)
    if model is None:
        print(
            f"{JOB}: {job.checkpoint} does not name its language model: no row {UNTOUCHED!r}",
            file=sys.stderr,
            flush=True,
        )
        return {}
    return {UNTOUCHED: list(untouched_answers(job, examples, model))}


def _write(
    job: GenerationJob,
    scored: list[Scored],
    conditions: list[str],
    scorer: str,
    judge: Judge | None,
    seen: Seen,
    rows: int,
    answers: Answers,
) -> dict[str, Any]:
    """All files of the evaluation, the report last; what the job prints."""
    from stetholm.evaluation.picture import draw_report  # here, as it brings matplotlib

    storage, output, chosen = job.storage, job.output, job.settings.evaluate
    report = {
        "checkpoint": job.checkpoint,
        "corpus": job.corpus,
        "corpus_sha256": job.inputs["corpus"],
        "split": job.split,
        "split_rows": rows,
        "decoding": {"temperature": 0.0, **chosen.model_dump(include=DECODING)},
        "scorer": scorer,
        "judge": judge_report(judge, scored) if judge else None,
        "lineage": seen.to_dict(),
        **make_report(scored, conditions, Draws(chosen.draws, job.settings.run.seed)),
    }
    storage.write_table(f"{output}/predictions.parquet", to_table(scored, conditions))
    storage.write_text(f"{output}/table.md", f"{short_table(report)}\n{published_table(report)}\n")
    storage.write_text(f"{output}/report.md", full_report(report))
    storage.write_bytes(f"{output}/report.png", draw_report(report))
    storage.write_json(f"{output}/report.json", report)
    return _result(output, report, answers)


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
        "binary_accuracy": {
            name: report["binary"][name]["accuracy"] for name in CONDITIONS if name in report["binary"]
        },
        "classes": {
            f"{table['dataset']}: {table['kind']}": {
                name: table["conditions"][name]["accuracy"] for name in report["overall"]
            }
            for table in report["classes"]
        },
    }
    if report["judge"]:
        result["judge"] = {key: report["judge"][key] for key in ("name", "judged", "unjudged", "agreement")}
    if answers.made:
        result["answers_per_second"] = round(answers.made / answers.seconds, 3)
    return result


def _read(job: GenerationJob, uri: str) -> Evaluation:
    return read_evaluation(uri, job.storage)


def _draws(job: GenerationJob) -> Draws:
    return Draws(job.settings.evaluate.draws, job.settings.run.seed)


def _compared(job: GenerationJob, output: str, others: dict[str, str]) -> dict[str, Any]:
    """Write the comparison with ``evaluate.compare_to``; nothing where none is set."""
    setting = "evaluate.compare_to"
    if setting not in others:
        return {}
    found = compare(_read(job, output), _read(job, others[setting]), _draws(job), setting)
    text = to_markdown(found)
    job.storage.write_json(f"{output}/comparison.json", found)
    job.storage.write_text(f"{output}/comparison.md", text)
    print(f"\n{text}")
    overall = found["tasks"]["Overall"]
    return {"comparison": {"theirs": found["theirs"], "n": found["n"], "label_accuracy": overall["label_accuracy"]}}


def _gated(job: GenerationJob, output: str, rules: GateRules, others: dict[str, str]) -> dict[str, Any]:
    """Write ``gate.json`` and say whether the checkpoint passed; nothing where no gate is set."""
    if not job.settings.evaluate.gate:
        return {}
    evaluation = _read(job, output)
    served = others.get("evaluate.gate.serving")
    verdict = judge_gate(rules, evaluation, _read(job, served) if served else None, _draws(job))
    report = evaluation.report
    signed = sign_off(verdict, report, output, report["corpus"], report["corpus_sha256"], job.storage)
    return {
        "gate": {
            "passed": signed["passed"],
            "failed": [check["name"] for check in signed["checks"] if not check["passed"]],
            "output": f"{signed['checkpoint']}/gate.json",
        }
    }
