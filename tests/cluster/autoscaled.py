"""The node types of ``cluster.yaml`` on one machine: Ray's autoscaler adds and removes nodes that are processes here.

Ray's autoscaler is the real one, and so are names, bounds and labels of the node types. A machine that would be
started is a raylet with logical CPUs and GPUs; the file's idle timeouts are divided by :data:`FASTER`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray.util
import yaml

from stetholm.cluster.file import ClusterFile
from stetholm.cluster.status import Dashboard
from stetholm.demo.head import Head, ray_head
from stetholm.errors import UserError
from tests.conftest import ROOT

FASTER = 60
"""A minute of idleness in cluster.yaml is a second here."""
LOGICAL = {"data": {"CPU": 2}, "trainer": {"CPU": 4, "GPU": 1}, "server": {"CPU": 1, "GPU": 1}}
"""What a node counts here, by its type's name."""
OBJECT_STORE_BYTES = 256 * 2**20
HEAD_TYPE = "ray.head.default"
"""The only name that Ray's provider of fake nodes knows for a head."""
HEAD_ID = "f" * 51 + "00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


def autoscaling_config(cluster: ClusterFile, gcs_address: str) -> dict[str, Any]:
    """What Ray's autoscaler reads on the head: the file's node types, with a provider that starts processes."""
    types = {
        name: {
            "resources": {**LOGICAL[name], "object_store_memory": OBJECT_STORE_BYTES},
            "labels": kind.labels,
            "min_workers": kind.min_workers,
            "max_workers": cluster.most(name),
            "node_config": {},
        }
        | ({} if kind.idle_timeout_s is None else {"idle_timeout_s": kind.idle_timeout_s / FASTER})
        for name, kind in cluster.workers.items()
    }
    head = {"resources": {"CPU": 0}, "labels": cluster.head.labels, "node_config": {}, "max_workers": 0}
    provider = {"type": "external", "module": PROVIDER, "gcs_address": gcs_address, "head_node_id": HEAD_ID}
    empty = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    commands: dict[str, Any] = {name: [] for name in (*empty, "head_start_ray_commands", "worker_start_ray_commands")}
    return commands | {
        "cluster_name": cluster.cluster_name,
        "max_workers": cluster.max_workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": cluster.idle_timeout_minutes / FASTER,
        "provider": {**provider, "launch_multiple": True},
        "auth": {"ssh_user": "nobody"},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_node_type": HEAD_TYPE,
        "available_node_types": {HEAD_TYPE: head, **types},
    }


@contextmanager
def autoscaled_head(cluster: ClusterFile, logs: Path) -> Iterator[Head]:
    """A head that starts and ends nodes for the length of the block."""

    def options(folder: Path, ports: list[int]) -> tuple[list[str], dict[str, str]]:
        file = folder / "autoscaling.yaml"
        config = autoscaling_config(cluster, f"{ray.util.get_node_ip_address()}:{ports[0]}")
        file.write_text(yaml.safe_dump(config))
        labels = ",".join(f"{name}={value}" for name, value in cluster.head.labels.items())
        return ["--num-cpus=0", f"--labels={labels}", f"--autoscaling-config={file}"], _fake()

    with ray_head(logs, options) as head:
        yield head


def _fake() -> dict[str, str]:
    """Environment of a head whose nodes are processes; its autoscaler looks every second."""
    return {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "PYTHONPATH": str(ROOT),
    }


@dataclass
class Timeline:
    """What happened when: nodes that came and went, by themselves, and what the test says; printed as it happens."""

    dashboard: Dashboard
    began: float = field(default_factory=time.time)
    now: Counter[str] = field(default_factory=Counter)
    changes: list[tuple[float, str, int]] = field(default_factory=list)
    """Time, role, and how many nodes more (or fewer, below 0)."""

    def say(self, text: str) -> float:
        """Print a line; the time in it."""
        at = time.time()
        print(f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} {at - self.began:7.1f} s  {text}", flush=True)
        return at

    def look(self) -> None:
        """See which nodes there are."""
        found: list[dict[str, Any]] = self.dashboard.get("/api/v0/nodes?limit=1000&detail=1")["data"]["result"][
            "result"
        ]
        alive = Counter(node["labels"].get("stetholm.role", "?") for node in found if node["state"] == "ALIVE")
        for role in sorted(alive | self.now):
            if more := alive[role] - self.now[role]:
                self.changes.append((time.time(), role, more))
                self.say(f"{'node +' if more > 0 else 'node -'} {role}: {self.now[role]} -> {alive[role]}")
        self.now = alive

    def seconds(self, role: str, since: float, more: bool, last: bool = False) -> float:
        """From a time to the first (or last) node of a type that came (or went) after it."""
        times = [at for at, which, count in self.changes if which == role and at > since and (count > 0) == more]
        return round((times[-1] if last else times[0]) - since, 1)


@contextmanager
def timeline(head: Head, every: float = 0.5) -> Iterator[Timeline]:
    """Watch the nodes for the length of the block."""
    made, stopped = Timeline(Dashboard(head.dashboard, head.token_file.read_text())), threading.Event()

    def watch() -> None:
        while not stopped.wait(every):
            try:
                made.look()
            except UserError as error:  # a dashboard that is busy for more than ten seconds
                made.say(str(error))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        stopped.set()
        thread.join()
