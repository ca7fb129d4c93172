"""The gate: minimum label accuracies that a checkpoint must reach (``evaluate.gate``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from stetholm.errors import UserError
from stetholm.evaluation.conditions import AUDIO
from stetholm.settings import Task

OVERALL, BINARY = "overall", "binary"
NAMES = (*get_args(Task), OVERALL, BINARY)
"""What a gate may name: a task, all together, or normal against abnormal."""


def check_gate(gate: Mapping[str, float]) -> None:
    """Refuse a gate that cannot be checked, before anything is generated.

    Raises:
        UserError: it names something else, or a share outside 0 to 1.
    """
    for name, minimum in gate.items():
        if name not in NAMES:
            raise UserError(f"evaluate.gate: {name!r} is no task; choose from {', '.join(NAMES)}")
        if not 0 <= minimum <= 1:
            raise UserError(f"evaluate.gate: the minimum of {name!r} must be a share between 0 and 1, not {minimum}")


def judge_gate(gate: Mapping[str, float], report: Mapping[str, Any]) -> dict[str, Any]:
    """Hold a report against the gate. What the split has no examples of has not passed."""
    checks = []
    for name, minimum in gate.items():
        value = _value(name, report)
        passed = value is not None and value >= minimum
        checks.append({"name": name, "minimum": minimum, "value": value, "passed": passed})
    passed = all(check["passed"] for check in checks)
    return {"passed": passed, "checkpoint": report["checkpoint"], "split": report["split"], "checks": checks}


def _value(name: str, report: Mapping[str, Any]) -> float | None:
    if name == BINARY:
        accuracy: float | None = report["binary"][AUDIO]["accuracy"]
        return accuracy
    figures = report["overall"] if name == OVERALL else report["tasks"].get(name)
    return None if figures is None else figures[AUDIO]["label_accuracy"]
