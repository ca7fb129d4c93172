"""The endpoint that the demo asks: deployed by a Ray job, waited for, taken down again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from stetholm.demo import lines, submit
from stetholm.demo.head import free_ports
from stetholm.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 30.0
"""For one look at /readyz, which has the model say a token."""


@contextmanager
def endpoint(client: JobSubmissionClient, model: str, overrides: list[str], root: Path, log: Path) -> Iterator[str]:
    """Keep the checkpoint ``model`` up on 127.0.0.1 for the duration of the block; yields the endpoint's URL.

    Nobody else is meant to ask it in its few seconds, so it takes a free port, and no keys.
    The endpoint's log goes to ``log`` at the end.

    Raises:
        JobFailed: it did not come up; the message is its own error line.
        UserError: it did not answer in time.
    """
    [port] = free_ports(1)
    ours = [f"serve.model={model}", "serve.host=127.0.0.1", f"serve.port={port}", "serve.api_keys_file=null"]
    ours.append("serve.gate=if-there")  # the demo's evaluation asks for no gate unless it is told to
    job = submit.submit(client, "serve", submit.command("-m serve.deploy", [*overrides, *ours]), root)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(client, job, url)
        yield url
    finally:
        submit.stop_job(client, job)
        log.write_text(submit.whole_log(client, job), encoding="utf-8")


def wait_until_ready(client: JobSubmissionClient, job: str, url: str) -> None:
    """Return once the endpoint says that it is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(base_url=url, timeout=ANSWER_TIMEOUT_S, trust_env=False) as http:
        while time.monotonic() < deadline:
            if client.get_job_status(job).is_terminal():
                raise failure(client, job)
            if answers(http):
                return
            time.sleep(0.5)
    raise UserError(f"the endpoint at {url} was not ready within {START_TIMEOUT_S:.0f} s")


def answers(http: httpx.Client) -> bool:
    """Whether ``/readyz`` says ready now."""
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def failure(client: JobSubmissionClient, job: str) -> submit.JobFailed:
    """What the deploying job said before it ended."""
    followed = submit.Followed()
    for line in submit.whole_log(client, job).splitlines():
        followed.take(lines.plain(line), lambda step: None)
    return submit.ended_badly(client, job, followed)
