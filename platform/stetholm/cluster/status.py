"""What runs where, as an operator asks: our processes, Ray's nodes, jobs, the endpoint's replicas.

All of Ray's part is read from its dashboard, which the head of a cluster, the demo and KubeRay have; a Ray that a job
or ``make serve`` started for itself has none and shows as a process.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from stetholm import processes
from stetholm.errors import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TIMEOUT_S = 10.0
JOBS_SHOWN = 12
GIB = 2**30


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        title: what it lists.
        header: names of the columns.
        rows: cells, as text.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Dashboard:
    """Where a Ray cluster answers, and with which token."""

    address: str
    token: str | None

    def ask(self, path: str, timeout: float) -> httpx.Response:
        """The answer as it comes."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.get(f"{self.address}{path}", headers=headers, timeout=timeout)

    def get(self, path: str) -> Any:
        """What it answers, as JSON.

        Raises:
            UserError: it does not answer, or refuses the token.
        """
        try:
            answer = self.ask(path, TIMEOUT_S)
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            advice = ": set RAY_AUTH_TOKEN_PATH to the file with its token" if code in (401, 403) else ""
            raise UserError(f"{self.address} refused {path} ({code}){advice}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise UserError(f"no Ray dashboard answers at {self.address} ({type(error).__name__})") from error


def look(address: str | None = None) -> list[Sheet]:
    """All tables that have a row.

    Args:
        address: of a dashboard; default: RAY_API_SERVER_ADDRESS, else those of our own heads, else Ray's usual port.

    Raises:
        UserError: an address was given, and nothing answers there.
    """
    sheets = [_ours()]
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if address is not None:
        sheets += _of(Dashboard(address.rstrip("/"), _token(dict(os.environ))))
    else:
        for dashboard in [*_own_dashboards(), Dashboard(DEFAULT_ADDRESS, _token(dict(os.environ)))]:
            answer = _answer(dashboard)
            if answer == "here":
                sheets += _of(dashboard)
            elif answer == "refused":
                advice = "refuses this token: set RAY_AUTH_TOKEN_PATH to the file with its own"
                sheets.append(Sheet("Ray", ("dashboard", ""), [(dashboard.address, advice)]))
    return [sheet for sheet in sheets if sheet.rows]


def show(sheets: Sequence[Sheet], console: Console | None = None) -> None:
    """Print the tables, or ``nothing runs``."""
    console = console or Console()
    if not sheets:
        console.print("nothing runs")
    for sheet in sheets:
        table = Table(title=sheet.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for name in sheet.header:
            table.add_column(name, overflow="fold")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
        console.print()


# --- our processes -------------------------------------------------------------------------------------------------


def _ours() -> Sheet:
    sheet = Sheet("Started by our commands (make stop ends them)", ("what", "process", "since", "processes", "memory"))
    for record in processes.records():
        process = record.process()
        if process is None:
            continue
        family = [process, *process.children(recursive=True)]
        memory = sum(_memory(each) for each in family)
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.started))
        sheet.rows.append((record.what, str(record.pid), since, str(len(family)), f"{memory / GIB:.1f} GiB"))
    return sheet


def _memory(process: psutil.Process) -> int:
    """Resident bytes; 0 if it has ended meanwhile."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _own_dashboards() -> Iterator[Dashboard]:
    """Of the Ray heads among our processes: their command line and environment say where and with which token."""
    for record in processes.records():
        process = record.process()
        if process is None:
            continue
        try:
            arguments, environ = process.cmdline(), process.environ()
        except psutil.Error:
            continue
        ports = [text.partition("=")[2] for text in arguments if text.startswith("--dashboard-port=")]
        if ports:
            yield Dashboard(f"http://127.0.0.1:{ports[0]}", _token(environ))


def _token(environ: dict[str, str]) -> str | None:
    """Ray's own order: the variable, the file that a variable names, the default file."""
    if environ.get("RAY_AUTH_TOKEN"):
        return environ["RAY_AUTH_TOKEN"]
    file = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _answer(dashboard: Dashboard) -> Literal["here", "refused", "nobody"]:
    """Whether a Ray dashboard is there, and lets us in; whatever else listens there is nobody."""
    try:
        answer = dashboard.ask("/api/version", 2.0)
    except httpx.HTTPError:
        return "nobody"
    if answer.status_code in (401, 403) and "ray" in answer.text.lower():
        return "refused"
    return "here" if "ray_version" in answer.text else "nobody"


# --- Ray ------------------------------------------------------------------------------------------------------------


def _of(dashboard: Dashboard) -> list[Sheet]:
    return [_nodes(dashboard), _jobs(dashboard), _endpoint(dashboard)]


def _nodes(dashboard: Dashboard) -> Sheet:
    sheet = Sheet(f"Ray nodes at {dashboard.address}", ("node", "address", "role", "state", "CPU", "GPU", "memory"))
    found = dashboard.get("/api/v0/nodes?limit=1000&detail=1")["data"]["result"]["result"]
    for node in sorted(found, key=lambda each: (not each["is_head_node"], each["state"], each["node_ip"])):
        has = node.get("resources_total") or {}
        role = (node.get("labels") or {}).get("stetholm.role") or ("head" if node["is_head_node"] else "worker")
        memory = f"{has.get('memory', 0) / GIB:.0f} GiB"
        counts = (f"{has.get('CPU', 0):g}", f"{has.get('GPU', 0):g}")
        sheet.rows.append((node["node_id"][:8], node["node_ip"], role, node["state"], *counts, memory))
    return sheet


def _jobs(dashboard: Dashboard) -> Sheet:
    """Submitted jobs, the newest first."""
    sheet = Sheet("Jobs", ("job", "status", "started", "command"))
    found = [job for job in dashboard.get("/api/jobs/") if job.get("submission_id")]
    found.sort(key=lambda job: job.get("start_time") or 0, reverse=True)
    for job in found[:JOBS_SHOWN]:
        started = job.get("start_time")
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(started / 1000)) if started else "–"
        sheet.rows.append((job["submission_id"], str(job["status"]), when, str(job.get("entrypoint", ""))[:80]))
    return sheet


def _endpoint(dashboard: Dashboard) -> Sheet:
    sheet = Sheet("Endpoint", ("application", "deployment", "status", "replicas", "wanted"))
    for name, application in dashboard.get("/api/serve/applications/").get("applications", {}).items():
        sheet.rows.append((name, "", str(application["status"]), "", ""))
        for part, deployment in application.get("deployments", {}).items():
            states = Counter(str(replica["state"]) for replica in deployment.get("replicas", []))
            replicas = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items())) or "none"
            wanted = str(deployment.get("target_num_replicas", "–"))
            sheet.rows.append(("", part, str(deployment["status"]), replicas, wanted))
    return sheet
