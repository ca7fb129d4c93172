"""How soon a cluster gives up a node that is silent; docs/cluster-hosts.md says what each number decides.

cluster.yaml has the same in its start commands; a test keeps them equal.
"""

from __future__ import annotations

HEAD_ENVIRONMENT = {"RAY_health_check_timeout_ms": "5000", "RAY_health_check_failure_threshold": "3"}
"""Of the head, which asks each node every 3 s. Lost are nodes with three answers in a row that took over 5 s: after at
most 24 s of silence. Ray's own 10 s and five times make it 65 s, in which training stands still."""

RECONNECT_S = 600
"""Where Redis keeps the head's books: how long a node waits for the head. Ray's own 60 s are less than a machine needs
to come back. KubeRay tells its pods the same by itself."""
