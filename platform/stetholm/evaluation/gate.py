"""The gate (``evaluate.gate``): what a checkpoint must reach before it may be deployed.

    evaluate.gate:
      overall: 0.6            # least values, by task, ``overall``, ``binary`` or ``classes``
      Report: 0.5
      margin: 0.1             # the overall value is above each control row's by so much
      serving: s3://…         # the evaluation (or the evaluated checkpoint) that is served now …
      max_drop: 0.02          # … and no task is worse than there by more than this
      metric: label_accuracy  # or clinical_accuracy, bertscore_f1, rouge1
      examples: 1.0           # least share of the split that was measured
      common: 0.9             # least share of the examples that both evaluations have, of the larger one's
      lineage: required       # or any: what cannot be compared with the training data is accepted

``binary`` is the accuracy of normal against abnormal, ``classes`` the lowest accuracy of the class tables, both
whatever the metric. What the split has no examples of has not passed, nor has what was measured on a part of the split,
on patients that were trained on, or by a checkpoint that does not say what it was trained on. These rules hold unless
set otherwise; the verdict lists them where they fail. :mod:`signoff` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stetholm.errors import UserError
from stetholm.evaluation.compare import Evaluation, compare, control_margin, is_control
from stetholm.evaluation.conditions import AUDIO, CONTROL_NAMES, CONTROLS
from stetholm.evaluation.scoring import Draws
from stetholm.settings import Task

OVERALL, BINARY, CLASSES = "overall", "binary", "classes"
NAMES = (*get_args(Task), OVERALL, BINARY, CLASSES)
"""What a gate may set a least value for."""
OPTIONS = ("margin", "max_drop", "serving", "metric", "examples", "common", "lineage")
SETTING = "evaluate.gate"


class GateRules(BaseModel):
    """The gate's settings, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minimum: dict[str, float] = {}
    margin: float | None = Field(None, ge=0, le=1)
    max_drop: float | None = Field(None, ge=0, le=1)
    serving: str | None = None
    metric: Literal["label_accuracy", "clinical_accuracy", "bertscore_f1", "rouge1"] = "label_accuracy"
    examples: float = Field(1.0, ge=0, le=1)
    common: float = Field(0.9, ge=0, le=1)
    lineage: Literal["required", "any"] = "required"


def check_gate(gate: Mapping[str, Any]) -> GateRules:
    """Refuse a gate that cannot be checked, before anything is generated.

    Raises:
        UserError: it names something else, a share outside 0 to 1, or half of a rule.
    """
    for name, value in gate.items():
        if name in OPTIONS:
            continue
        if name not in NAMES:
            raise UserError(f"{SETTING}: {name!r} is no task; choose from {', '.join((*NAMES, *OPTIONS))}")
        if isinstance(value, str) or not 0 <= value <= 1:
            raise UserError(f"{SETTING}: the minimum of {name!r} must be a share between 0 and 1, not {value}")
    options = {name: gate[name] for name in OPTIONS if name in gate}
    try:
        rules = GateRules(minimum={name: float(gate[name]) for name in gate if name not in OPTIONS}, **options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{SETTING}.{first['loc'][0]}: {first['msg']} (got {first['input']!r})") from None
    if (rules.serving is None) != (rules.max_drop is None):
        raise UserError(
            f"{SETTING}: serving and max_drop belong together: the evaluation, and how much worse is allowed"
        )
    return rules


def judge_gate(
    rules: GateRules, evaluation: Evaluation, serving: Evaluation | None = None, draws: Draws | None = None
) -> dict[str, Any]:
    """Hold an evaluation against the gate.

    Args:
        rules: of :func:`check_gate`.
        evaluation: of the checkpoint.
        serving: of the model that is served now, where the rules name one.
        draws: of the intervals of margins and drops.

    Returns:
        ``passed``, ``metric`` and ``checks``: each with ``rule``, ``name``, ``value``, ``bound``, ``interval`` and
        ``passed``.
    """
    draws, report = draws or Draws(), evaluation.report
    checks = [
        _check("minimum", name, _value(name, report, rules.metric), bound) for name, bound in rules.minimum.items()
    ]
    if rules.margin is not None:
        checks += _margins(rules, evaluation, draws)
    if serving is not None and rules.max_drop is not None:
        checks += _drops(rules, evaluation, serving, draws)
    checks += [*_whole(rules, report), *_unseen(rules, report)]
    return {"passed": all(check["passed"] for check in checks), "metric": rules.metric, "checks": checks}


def _check(rule: str, name: str, value: float | None, bound: float, interval: Any = None) -> dict[str, Any]:
    passed = value is not None and value >= bound
    return {"rule": rule, "name": name, "value": value, "bound": bound, "interval": interval, "passed": passed}


def _value(name: str, report: Mapping[str, Any], metric: str) -> float | None:
    if name == BINARY:
        accuracy: float | None = report["binary"][AUDIO]["accuracy"]
        return accuracy
    if name == CLASSES:
        found = [table["conditions"][AUDIO]["accuracy"] for table in report.get("classes", [])]
        return min(found) if found and None not in found else None
    figures = report["overall"] if name == OVERALL else report["tasks"].get(name)
    return None if figures is None else figures[AUDIO][metric]


def _whole(rules: GateRules, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Figures of a few examples (``evaluate.max_examples``) or tasks sign nothing off."""
    check = _check("examples", "of the split", report["examples"] / report["split_rows"], rules.examples)
    return [] if check["passed"] else [check]


def _unseen(rules: GateRules, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Figures on patients that were trained on, or may have been, sign nothing off."""
    seen = report.get("lineage", {})
    counts = {name: seen.get(f"seen_{name}", 0) for name in ("patients", "recordings")}
    failed = {"value": None, "bound": 0, "interval": None, "passed": False}
    gaps = seen.get("not_compared", []) if rules.lineage == "required" else []
    return [
        *({**failed, "rule": "unseen", "name": name, "value": count} for name, count in counts.items() if count),
        *({**failed, "rule": "lineage", "name": gap} for gap in gaps),
    ]


def _margins(rules: GateRules, evaluation: Evaluation, draws: Draws) -> list[dict[str, Any]]:
    bound, checks = float(rules.margin or 0.0), []
    for control in CONTROLS:
        if is_control(evaluation.report, control):
            found = control_margin(evaluation, control, rules.metric, draws)
            checks.append(_check("margin", CONTROL_NAMES[control], found["difference"], bound, found["interval"]))
    return checks or [_check("margin", "no control rows", None, bound)]


def _drops(rules: GateRules, evaluation: Evaluation, serving: Evaluation, draws: Draws) -> list[dict[str, Any]]:
    """No task may be worse; one that the served model was measured on and this one was not has not passed."""
    found = compare(evaluation, serving, draws, f"{SETTING}.serving")
    share = found["n"] / max(len(evaluation.rows), len(serving.rows))
    common = _check("common", "with the served model's evaluation", share, rules.common)
    bound, checks = -float(rules.max_drop or 0.0), [] if common["passed"] else [common]
    tasks = sorted({row["task"] for row in serving.rows.values()})
    for task in tasks:
        one = found["tasks"].get(task, {}).get(rules.metric) or {"difference": None, "interval": None}
        checks.append(_check("max_drop", task, one["difference"], bound, one["interval"]))
    return checks
