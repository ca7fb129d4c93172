"""What a benchmark reports: one JSON object a line, printed and appended to ``results/<date>-<device>.jsonl``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
VERSIONS = ("ray", "torch", "transformers", "trl", "deepspeed", "pyarrow")


@dataclass(frozen=True)
class Result:
    """Ours against a baseline, in the sense in which more is better."""

    bench: str
    ours: float
    baseline: float
    unit: str
    baseline_is: str
    config: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The contract's JSON object."""
        figures = {**asdict(self), "ratio": self.ours / self.baseline, "device": device(), "versions": versions()}
        return json.dumps({key: _rounded(value) for key, value in figures.items()})


def median_round(rounds: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Ours and the baseline of the round of the median ratio; a round is (ours, seconds to the start, baseline)."""
    ours, _, baseline = sorted(rounds, key=lambda each: each[0] / each[2])[len(rounds) // 2]
    return ours, baseline


def device() -> str:
    """The processor and how many of it, or the GPU."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()}x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()}x {_processor()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1].strip() if found else os.uname().machine


@cache
def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    return {name: version(name) for name in VERSIONS}


def publish(result: Result) -> None:
    """Print a result and append it to today's file of this device."""
    line = result.line()
    print(line, flush=True)
    slug = re.sub(r"[^a-z0-9]+", "-", device().lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{date.today():%Y-%m-%d}-{slug}.jsonl").open("a") as file:
        file.write(line + "\n")


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
