"""The same cluster as containers on one machine: a ``docker compose`` file, to try what Kubernetes will run."""

from __future__ import annotations

from typing import Any

from stetholm.cluster.explicit import environment
from stetholm.cluster.file import ClusterFile, Described
from stetholm.cluster.kuberay import METRICS_PORT
from stetholm.cluster.timeouts import HEAD_ENVIRONMENT, STOP_WAIT, stop_wait_s

TOKEN = "ray_token"


def compose(described: Described) -> dict[str, Any]:
    """A compose file: the head, and each worker type ``min_workers`` times (``--scale data=2`` for more).

    Nothing scales by itself here. Dashboard and endpoint are reached from this machine alone.
    """
    cluster, settings = described.cluster, described.settings
    head = _service(described, cluster.head_node_type)
    head["command"] = _start("--head --port=6379 --dashboard-host=0.0.0.0", cluster, cluster.head_node_type)
    head["environment"] |= HEAD_ENVIRONMENT
    published = {8265: 8265, settings.serve.port: settings.serve.port}
    head["ports"] = [f"127.0.0.1:{port}:{inside}" for port, inside in published.items()]
    services = {"head": head}
    for name, kind in cluster.workers.items():
        worker = _service(described, name)
        worker["command"] = _start("--address=head:6379", cluster, name)
        worker["depends_on"] = ["head"]
        worker["deploy"] = {"replicas": kind.min_workers, **worker.get("deploy", {})}
        services[name] = worker
    return {
        "name": cluster.cluster_name,
        "services": services,
        "secrets": {TOKEN: {"file": "${HOME}/.ray/auth_token"}},
    }


def _service(described: Described, name: str) -> dict[str, Any]:
    cluster = described.cluster
    kind = cluster.head if name == cluster.head_node_type else cluster.workers[name]
    service: dict[str, Any] = {
        "image": cluster.kubernetes.image,
        "environment": {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": f"/run/secrets/{TOKEN}",
            STOP_WAIT: str(stop_wait_s(described.settings.train.grace_seconds)),
            "AWS_ACCESS_KEY_ID": "${AWS_ACCESS_KEY_ID:-}",
            "AWS_SECRET_ACCESS_KEY": "${AWS_SECRET_ACCESS_KEY:-}",
            **environment(described.settings),
        },
        "secrets": [TOKEN],
        # Ray's object store: shared memory, of which a container has 64 MiB otherwise.
        "shm_size": "2gb",
    }
    if kind.gpus:
        device = {"driver": "nvidia", "count": kind.gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _start(how: str, cluster: ClusterFile, name: str) -> str:
    kind = cluster.available_node_types[name]
    gpus = f" --num-gpus={kind.gpus}" if kind.gpus else ""
    return f"ray start {how} --num-cpus={kind.cpus}{gpus} --metrics-export-port={METRICS_PORT} --block"
