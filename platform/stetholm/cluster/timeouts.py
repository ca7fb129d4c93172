"""How soon a cluster gives up a node that is silent, and how long it waits; docs/cluster-hosts.md, docs/jobs.md.

cluster.yaml has the same in its start commands; a test keeps them equal.
"""

from __future__ import annotations

import math

HEAD_ENVIRONMENT = {"RAY_health_check_timeout_ms": "5000", "RAY_health_check_failure_threshold": "3"}
"""Of the head, which asks each node every 3 s. Lost are nodes with three answers in a row that took over 5 s: after at
most 24 s of silence. Ray's own 10 s and five times make it 65 s, in which training stands still."""

STOP_SLACK_S = 10
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Of all nodes: how long ``ray job stop`` waits between SIGTERM and SIGKILL. A job's supervisor reads it from its own
environment, on the node where the driver runs; Ray's own 3 s are less than a step and an upload take."""


def stop_wait_s(grace_seconds: float) -> int:
    """For that many seconds of ``train.grace_seconds``: a little more than the last checkpoint may take."""
    return math.ceil(grace_seconds) + STOP_SLACK_S


RECONNECT_S = 600
"""Where Redis keeps the head's books: how long a node waits for the head. Ray's own 60 s are less than a machine needs
to come back. KubeRay tells its pods the same by itself."""
