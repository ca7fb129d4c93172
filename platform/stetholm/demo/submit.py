"""Run one script of ``jobs/`` as a Ray job and follow it to its end."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stetholm.demo import lines
from stetholm.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STOP_TIMEOUT_S = 30.0
AGENT_TIMEOUT_S = 60.0
NO_AGENT = "No available agent"


class JobFailed(UserError):
    """A job ended otherwise than well; the message is the job's own error line."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
        """The script's own exit status: 2 for bad settings or input, 1 for anything else."""


@dataclass
class Followed:
    """What a job's log has said so far."""

    result: dict[str, Any] | None = None
    tail: list[str] = field(default_factory=list)
    """The last lines that are neither progress nor result."""

    def take(self, line: str, on_step: Callable[[lines.Step], None]) -> None:
        """Read one plain line."""
        if (step := lines.progress(line)) is not None:
            on_step(step)
        elif (result := lines.result(line)) is not None:
            self.result = result
        elif line.strip():
            self.tail = [*self.tail[-19:], line]


def command(script: str, overrides: list[str], *arguments: str) -> str:
    """The shell line of a job, as one would type it after ``ray job submit --working-dir . --``."""
    settings = [part for pair in overrides for part in ("--set", pair)]
    return shlex.join(["python", *shlex.split(script), *arguments, *settings])


def submit(
    client: JobSubmissionClient, name: str, entrypoint: str, root: Path, environment: dict[str, str] | None = None
) -> str:
    """Submit a job with ``root`` as its working directory (less what .rayignore names); returns its id.

    ``environment``: variables of the job, besides those of the head.

    Raises:
        UserError: the head has had no agent to run it for a minute.
    """
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            return client.submit_job(
                entrypoint=entrypoint,
                submission_id=f"{name}-{time.time_ns() // 1_000_000}",
                runtime_env={"working_dir": str(root), "env_vars": environment or {}},
                metadata={"stetholm": name},
            )
        except RuntimeError as error:
            if NO_AGENT not in str(error):
                raise
            time.sleep(1.0)  # on a busy machine it comes up after the dashboard
    raise UserError(f"Ray had no agent to run a job within {AGENT_TIMEOUT_S:.0f} s: see its logs")


async def log_lines(client: JobSubmissionClient, job: str) -> AsyncIterator[str]:
    """Lines of the job's log as they come, until it ends; a connection that breaks is taken up where it was."""
    seen, part = 0, ""
    while True:
        position = 0
        with suppress(RuntimeError):
            async for text in client.tail_job_logs(job):
                start, position = position, position + len(text)
                if position <= seen:
                    continue
                part += text[max(seen - start, 0) :]
                seen = position
                *whole, part = part.split("\n")
                for line in whole:
                    yield line
        if client.get_job_status(job).is_terminal():
            break
        await asyncio.sleep(1.0)
    if part:
        yield part


async def _follow(client: JobSubmissionClient, job: str, log: Path, on_line: Callable[[str], None]) -> None:
    with log.open("a", encoding="utf-8") as output:
        async for line in log_lines(client, job):
            output.write(lines.plain(line) + "\n")
            output.flush()
            on_line(lines.plain(line))


def why(followed: Followed, message: str) -> str:
    """The one line that tells why a job failed: the script's last one, or else what Ray says about it."""
    return followed.tail[-1] if followed.tail else message


def ended_badly(client: JobSubmissionClient, job: str, followed: Followed) -> JobFailed:
    """The error of a job that has ended otherwise than well, with its script's own status."""
    info = client.get_job_info(job)
    return JobFailed(why(followed, str(info.message)), 2 if info.driver_exit_code == 2 else 1)


def whole_log(client: JobSubmissionClient, job: str) -> str:
    """All that the job has written; empty when the head is gone."""
    try:
        return str(client.get_job_logs(job))
    except (RuntimeError, ConnectionError):
        return ""


def run_job(
    client: JobSubmissionClient,
    name: str,
    entrypoint: str,
    root: Path,
    log: Path,
    on_step: Callable[[lines.Step], None],
) -> dict[str, Any]:
    """Submit a job, follow it, and return its ``RESULT``. An interruption stops the job.

    Raises:
        JobFailed: it ended otherwise than well, or without a result.
    """
    job = submit(client, name, entrypoint, root)
    followed = Followed()
    try:
        asyncio.run(_follow(client, job, log, lambda line: followed.take(line, on_step)))
    except BaseException:
        stop_job(client, job)
        raise
    if client.get_job_status(job) != "SUCCEEDED":
        raise ended_badly(client, job, followed)
    if followed.result is None:
        raise JobFailed(f"{name} ended well but printed no RESULT line")
    return followed.result


def stop_job(client: JobSubmissionClient, job: str) -> None:
    """Stop a job and wait until it has ended."""
    with suppress(RuntimeError, ConnectionError):  # the head may be gone already; its end ends the job too
        client.stop_job(job)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)
