"""Nodes, hours and money of a whole training, before anything is started.

The model: time = fixed + work / (rate · workers · efficiency), with efficiency = e^log2(workers), e the share of the
speed that a doubling of workers leaves. :mod:`stetholm.cluster.check` holds it against measured runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stetholm.cluster.file import ClusterFile
from stetholm.cluster.rates import JOBS, JobName, Rate, of_plan, rate_of
from stetholm.errors import UserError
from stetholm.markdown import table
from stetholm.settings import PlanSettings, Settings

CONTROLS = 3
"""How often evaluation asks with its two controls: with the recording, without, and with another one."""
INGEST_SHARE = 0.1
"""Of the hours of ``within`` that ingest, which has nodes of its own, may take."""
MOST_NODES = 2**20

LIST_PRICES = {"m5.xlarge": 0.192, "c5.4xlarge": 0.68, "g5.4xlarge": 1.624, "g5.xlarge": 1.006}
"""Dollars an hour: AWS's list in us-east-1, on demand, as last known here. plan.prices wins: look yours up."""


@dataclass(frozen=True)
class Stage:
    """One job of the plan.

    Attributes:
        job: its name.
        work: samples.
        rate: of one worker.
        nodes: of its node type.
        workers: on all of them.
        seconds: from submission to end.
        machine: of a node.
        price: dollars an hour of one; None if not known.
    """

    job: JobName
    work: float
    rate: Rate
    nodes: int
    workers: int
    seconds: float
    machine: str
    price: float | None

    @property
    def dollars(self) -> float | None:
        """Of its nodes while it runs: idle ones leave."""
        return None if self.price is None else self.price * self.nodes * self.seconds / 3600


@dataclass(frozen=True)
class Plan:
    """All jobs, one after the other, at one scale."""

    scale: float
    stages: tuple[Stage, ...]
    head_price: float | None
    assumptions: PlanSettings

    @property
    def seconds(self) -> float:
        """In all."""
        return math.fsum(stage.seconds for stage in self.stages)

    @property
    def dollars(self) -> float | None:
        """In all, the head included; None where a price is not known."""
        parts = [stage.dollars for stage in self.stages]
        parts.append(None if self.head_price is None else self.head_price * self.seconds / 3600)
        known = [part for part in parts if part is not None]
        return math.fsum(known) if len(known) == len(parts) else None


def works(settings: Settings, scale: float) -> dict[JobName, float]:
    """Samples of each job, ``scale`` times StethoBench."""
    plan, prefer = settings.plan, settings.prefer
    asked = CONTROLS if settings.evaluate.controls else 1
    return {
        "ingest": plan.recordings * scale,
        "align": plan.align_pairs * settings.stage("align").epochs * scale,
        "sft": plan.train_pairs * settings.stage("sft").epochs * scale,
        "prefer": prefer.pairs * prefer.candidates * scale,
        "dpo": prefer.pairs * settings.stage("dpo").epochs * scale,
        "evaluate": plan.test_pairs * asked * scale,
    }


def seconds_of(work: float, rate: float, workers: int, plan: PlanSettings) -> float:
    """The model of this module."""
    efficiency = plan.doubling_efficiency ** math.log2(workers)
    return plan.fixed_seconds + plan.node_seconds + work / (rate * workers * efficiency)


def make(
    cluster: ClusterFile, settings: Settings, results: Path, scale: float = 1.0, within: float | None = None
) -> Plan:
    """Plan all jobs.

    Args:
        cluster: node types and how many there may be of each.
        settings: the published ones, or one's own.
        results: folder of the benchmarks' lines.
        scale: times StethoBench.
        within: hours for all; then nodes are counted so that it is kept, however many the file allows.

    Raises:
        UserError: a rate or a node type is missing, or ``within`` cannot be kept.
    """
    if scale <= 0 or (within is not None and within <= 0):
        raise UserError("--scale and --within take numbers above 0")
    work = works(settings, scale)
    rates = {job: rate_of(job, settings, results) for job in JOBS}

    def stages(jobs: tuple[JobName, ...], role: str, nodes: int) -> list[Stage]:
        return [_stage(job, work[job], rates[job], cluster, role, nodes, settings) for job in jobs]

    found = []
    for jobs, role, share in ((JOBS[:1], "data", INGEST_SHARE), (JOBS[1:], "trainer", 1 - INGEST_SHARE)):
        name = _type_for(cluster, role)
        nodes = cluster.most(name)
        if within is not None:
            limit = within * 3600 * share
            nodes = least(lambda count: sum(s.seconds for s in stages(jobs, role, count)) <= limit)  # noqa: B023
        found += stages(jobs, role, nodes)
    head = _price(cluster.head.machine, settings)
    return Plan(scale, tuple(found), head, settings.plan)


def _type_for(cluster: ClusterFile, role: str) -> str:
    name = cluster.node_type_for(role)
    if name is None:
        raise UserError(f"the cluster file has no node type {role!r}, nor one with the label stetholm.role: {role}")
    if cluster.most(name) < 1:
        raise UserError(f"available_node_types.{name}.max_workers is 0: nothing can run there")
    return name


def _stage(
    job: JobName, work: float, rate: Rate, cluster: ClusterFile, role: str, nodes: int, settings: Settings
) -> Stage:
    kind = cluster.workers[_type_for(cluster, role)]
    on_gpus = role == "trainer" and settings.stage("sft").use_gpu
    each = kind.gpus if on_gpus else kind.cpus
    if each < 1:
        raise UserError(f"node type for {role}: it has no {'GPU' if on_gpus else 'CPU'} in its resources")
    seconds = seconds_of(work, rate.value, nodes * each, settings.plan)
    price = _price(kind.machine, settings)
    return Stage(job, work, rate, nodes, nodes * each, seconds, kind.machine or role, price)


def _price(machine: str | None, settings: Settings) -> float | None:
    return {**LIST_PRICES, **settings.plan.prices}.get(machine or "")


def least(enough: Callable[[int], bool]) -> int:
    """The smallest count for which ``enough`` holds, which it does from there on.

    Raises:
        UserError: it does not for a million.
    """
    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_NODES:
            raise UserError("--within cannot be kept with any number of nodes: starting them takes longer")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def report(plan: Plan) -> str:
    """The plan as Markdown: a table, and what it rests on."""
    rows: list[tuple[object, ...]] = [
        (
            stage.job,
            f"{stage.nodes} × {stage.machine}",
            f"{stage.work:,.0f}",
            _short(stage.rate.value),
            stage.workers,
            _hours(stage.seconds),
            _money(stage.dollars),
        )
        for stage in plan.stages
    ]
    rows.append(("**in all**", "and the head", "", "", "", _hours(plan.seconds), _money(plan.dollars)))
    header = ("job", "nodes", "samples", "samples/s a worker", "workers", "hours", "dollars")
    rates = [f"- {stage.job}: {stage.rate.origin}" for stage in plan.stages]
    title = f"### StethoBench × {plan.scale:g}"
    assumed = f"Assumed: {of_plan(plan.assumptions)}."
    return "\n".join([title, "", table(header, rows, texts=2), "", "Rates:", "", *rates, "", assumed, ""])


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f}"


def _money(dollars: float | None) -> str:
    return "price not known" if dollars is None else f"{dollars:,.0f}"
