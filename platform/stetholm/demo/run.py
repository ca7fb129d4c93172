"""The demo's steps, in order: jobs, table, endpoint, questions, and an account of what it cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from stetholm import processes, runs
from stetholm.demo import questions, submit
from stetholm.demo.display import JobDisplay, clock
from stetholm.demo.endpoint import endpoint
from stetholm.demo.footprint import Footprint
from stetholm.demo.head import ray_head
from stetholm.errors import UserError
from stetholm.settings import EMBEDDED, Settings, load_settings
from stetholm.storage import Storage, home, leave, open_storage

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

JOBS = ("ingest", "align", "sft", "prefer", "dpo", "evaluate")
ROOT = Path(__file__).resolve().parents[3]
SHOWN = (
    "recordings",
    "pairs",
    "rejected",
    "steps",
    "loss_first",
    "loss_last",
    "samples_per_second",
    "examples",
    "answers_per_second",
)
"""Numbers of a job's RESULT that its closing line shows."""
CONDITIONS = {
    "audio": "",
    "withheld": ", recording withheld",
    "shuffled": ", another recording",
    "untouched": ", language model untouched",
}
GOING_S = 15.0
"""How long processes may take to go after their owner has ended."""


class DemoFailed(UserError):
    """A step failed; the message is its one clear line."""

    def __init__(self, step: str, message: str, log: Path, status: int) -> None:
        super().__init__(f"{step} failed: {message}")
        self.log = log
        self.status = status


class Demo:
    """One run of the demo."""

    def __init__(self, overrides: list[str], console: Console) -> None:
        """Read the settings; nothing is started yet.

        Raises:
            UserError: a setting is wrong.
        """
        config = ROOT / "cluster.yaml"
        self.settings: Settings = load_settings(config if config.exists() else None, overrides)
        self.overrides = overrides
        self.console = console
        self.seconds: dict[str, float] = {}
        self.footprint = Footprint()
        self.logs = home() / "logs" / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
        self.results: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        """All of it. Whatever was started is ended, however this ends."""
        self.logs.mkdir(parents=True, exist_ok=True)
        processes.record("demo")
        self.console.print(f"run [bold]{self.settings.run.name}[/bold]   logs {self.logs}")
        try:
            with self.footprint, ExitStack() as stack:
                self._steps(stack)
        finally:
            self._clear()
            processes.forget()
        self._summary()

    def _steps(self, stack: ExitStack) -> None:
        with self._step("start"):
            storage = self._storage(stack)
            client = self._head(stack)
        for job in JOBS:
            self._job(client, job)
        self._table(storage)
        model, log = str(self.results["dpo"]["output"]), self.logs / "serve.log"
        with self._failing("serve", log), self._step("deploy"), JobDisplay(self.console, "serve"):
            url = stack.enter_context(endpoint(client, model, self.overrides, ROOT, log))
        self.console.print(f"endpoint  {url}   ({model})", soft_wrap=True)
        with self._failing("questions", log), self._step("questions"):
            self._ask(storage, url)
        with self._step("stop"):
            stack.close()

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Time the block, and have its memory counted as the step's."""
        started = time.monotonic()
        self.footprint.step = name
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - started

    def _storage(self, stack: ExitStack) -> Storage:
        storage = open_storage(self.settings.storage)
        if self.settings.storage.uri == EMBEDDED:
            stack.callback(self._leave_server)
            if (pid := leave.server_pid()) is not None:
                self.footprint.count_too(pid)
        return storage

    def _leave_server(self) -> None:
        if not leave.leave_server():
            self.console.print("The embedded S3 server stays up: another process uses it.", style="yellow")

    def _head(self, stack: ExitStack) -> JobSubmissionClient:
        head = stack.enter_context(ray_head(self.logs))
        self.console.print(f"dashboard {head.dashboard}   (it asks for the token in {head.token_file})", soft_wrap=True)
        return head.client()

    def _job(self, client: JobSubmissionClient, job: str) -> None:
        """Run one job and print its result."""
        log = self.logs / f"{job}.log"
        with self._failing(job, log), self._step(job), JobDisplay(self.console, job) as display:
            entrypoint = submit.command(f"jobs/{job}.py", self.overrides)
            result = submit.run_job(client, job, entrypoint, ROOT, log, display.show)
        self.results[job] = result
        numbers = "  ".join(f"{key} {number(result[key])}" for key in SHOWN if key in result)
        seconds = clock(self.seconds[job])
        self.console.print(f"[green]✓[/green] {job:<9} {seconds:>6}  {numbers}", soft_wrap=True)
        self.console.print(f"            {result.get('output', '')}", style="dim", soft_wrap=True)

    @contextmanager
    def _failing(self, step: str, log: Path) -> Iterator[None]:
        """Turn what a step raises into the demo's own failure, which names the step's log."""
        try:
            yield
        except DemoFailed:
            raise
        except submit.JobFailed as error:
            raise DemoFailed(step, str(error), log, error.status) from error
        except UserError as error:
            raise DemoFailed(step, str(error), log, 1) from error

    def _table(self, storage: Storage) -> None:
        text = storage.read_text(runs.run_uri(self.settings, storage, "evaluate", "table.md"))
        (self.logs / "table.md").write_text(text)
        self.console.print(Markdown(text))

    def _ask(self, storage: Storage, url: str) -> None:
        asked = questions.questions(storage, runs.corpus_uri(self.settings, storage), self.settings.evaluate.split)
        for question, answer in questions.ask(url, asked):
            self.console.print(f"\n{question.kind} ({question.task}; {question.source})", style="bold", markup=False)
            self.console.print(f"  question  {question.instruction}", markup=False)
            self.console.print(f"  reference {question.reference}", markup=False)
            self.console.print(f"  answer    {answer}", markup=False)
        self.console.print("For research only, not for clinical use.\n", style="dim")

    def _clear(self) -> None:
        """See to it that nothing this demo started still runs."""
        psutil.wait_procs(self.footprint.left(), timeout=GOING_S)
        for name in self.footprint.end_left():
            self.console.print(f"ended a process that was left: {name}", style="yellow", markup=False)

    def _summary(self) -> None:
        """Times, memory, and whether the model has learned."""
        table = Table("step", "time", "peak memory", title="What it took")
        for name, seconds in self.seconds.items():
            table.add_row(name, clock(seconds), gib(self.footprint.peaks.get(name, 0)))
        table.add_row("in all", clock(sum(self.seconds.values())), gib(self.footprint.peak_bytes), style="bold")
        self.console.print(table)
        for condition, share in self.results["evaluate"]["binary_accuracy"].items():
            self.console.print(f"binary accuracy{CONDITIONS[condition]}: {percent(share)}", style="bold")
        self.console.print("Nothing is left running.")


def number(value: Any) -> str:
    """A number of a result, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def gib(size: int) -> str:
    """Bytes as GiB; a dash where a step was too short to be looked at."""
    return f"{size / 2**30:.2f} GiB" if size else "-"


def percent(share: float | None) -> str:
    """A share in per cent; a dash where there is none (nothing of the split is labelled normal or abnormal)."""
    return "-" if share is None else f"{100 * share:.1f} %"
