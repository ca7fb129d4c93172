"""What Prometheus is told, through Ray's metrics: every node's metrics port has it, as ``ray_<name>``.

Serve adds its own (``ray_serve_…``: replicas, queues of its router). Deployment and replica are tags of all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar

from ray.serve import metrics

from stetholm.serving.engine import Delta

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]
TOKENS_PER_SECOND = [1, 2.5, 5, 10, 20, 40, 80, 160, 320]

arrived: ContextVar[float | None] = ContextVar("stetholm_arrived", default=None)
"""When the HTTP request that is being answered came in, in Unix seconds: waiting counts, wherever it happens."""


class HttpMetrics:
    """Of an ingress replica."""

    def __init__(self) -> None:
        """Make them; in a replica they carry its tags."""
        self.requests = metrics.Counter(
            "stetholm_http_requests",
            "HTTP requests that were answered.",
            tag_keys=("route", "status"),  # type: ignore[arg-type]  # Serve's hint says one key; it takes many
        )
        self.seconds = metrics.Histogram(
            "stetholm_http_request_seconds",
            "From the arrival of a request to the end of its answer.",
            boundaries=SECONDS,
            tag_keys=("route",),
        )
        self.refused = metrics.Counter(
            "stetholm_limit_refusals", "Requests beyond the limits of their key.", tag_keys=("key",)
        )
        self.answers = metrics.Counter(
            "stetholm_answers",
            "Answers, by the model that gave them and the name it was asked under.",
            tag_keys=("model", "asked"),  # type: ignore[arg-type]
        )
        self.failures = metrics.Counter(
            "stetholm_failed_answers",
            "Answers that a model was asked for and did not give, for no fault of the client, by the error's code.",
            tag_keys=("model", "asked", "code"),  # type: ignore[arg-type]
        )
        self.audio = metrics.Counter("stetholm_audio_seconds", "Seconds of sound that were decoded.")

    def answered(self, route: str, status: int, seconds: float) -> None:
        """One request is over."""
        self.requests.inc(1, {"route": route, "status": str(status)})
        self.seconds.observe(seconds, {"route": route})


class ModelMetrics:
    """Of a model replica."""

    def __init__(self) -> None:
        """Make them; in a replica they carry its tags."""
        self.waiting = metrics.Gauge("stetholm_waiting_requests", "Requests in this replica without a token yet.")
        self.batch = metrics.Gauge("stetholm_batch_size", "Requests in this replica that get tokens now.")
        self.first_token = metrics.Histogram(
            "stetholm_first_token_seconds",
            "From the arrival of the HTTP request to the first piece of its answer.",
            boundaries=SECONDS,
        )
        self.rate = metrics.Histogram(
            "stetholm_tokens_per_second",
            "Tokens of one request per second, after its first piece.",
            boundaries=TOKENS_PER_SECOND,
        )
        self.tokens = metrics.Counter("stetholm_tokens", "Tokens read and written.", tag_keys=("kind",))
        self._waiting = self._running = 0

    def moved(self, waiting: int = 0, running: int = 0) -> None:
        """Change how many wait and run."""
        self._waiting += waiting
        self._running += running
        self.waiting.set(self._waiting)
        self.batch.set(self._running)


class RequestWatch:
    """One request in a model replica, from its arrival to its end: a context manager around its deltas."""

    def __init__(self, told: ModelMetrics, since: float | None, begun: Sequence[Sequence[int]] = ()) -> None:
        """``since``: when the HTTP request came in, Unix seconds; None: now. ``begun``: tokens that others made."""
        self._told, self._since = told, time.time() if since is None else since
        self._begun = {index: len(tokens) for index, tokens in enumerate(begun)}
        self._first: float | None = None
        self._first_tokens = 0
        self._last: dict[int, Delta] = {}

    def __enter__(self) -> RequestWatch:
        """It waits."""
        self._told.moved(waiting=1)
        return self

    def saw(self, delta: Delta) -> None:
        """A piece of an answer."""
        if self._first is None:
            self._first, self._first_tokens = time.monotonic(), self._made(delta)
            if not self._begun:
                # Clocks of two machines may differ by some milliseconds.
                self._told.first_token.observe(max(0.0, time.time() - self._since))
            self._told.moved(waiting=-1, running=1)
        self._last[delta.index] = delta

    def _made(self, delta: Delta) -> int:
        """Tokens of its answer that were made here."""
        return delta.completion_tokens - self._begun.get(delta.index, 0)

    def __exit__(self, *_: object) -> None:
        """It is over, however it ended."""
        if self._first is None:
            self._told.moved(waiting=-1)
            return
        self._told.moved(running=-1)
        made = sum(map(self._made, self._last.values()))
        if not self._begun:
            self._told.tokens.inc(next(iter(self._last.values())).prompt_tokens, {"kind": "prompt"})
        if made:
            self._told.tokens.inc(made, {"kind": "completion"})
        seconds = time.monotonic() - self._first
        if seconds > 0 and made > self._first_tokens:
            self._told.rate.observe((made - self._first_tokens) / seconds)
