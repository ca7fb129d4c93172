"""KubeRay's resources from ``cluster.yaml``: one pod a node, node types as worker groups."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

from stetholm.cluster.explicit import environment, given
from stetholm.cluster.file import ClusterFile, Described, NodeType
from stetholm.cluster.manifests import (
    AuthOptions,
    AutoscalerOptions,
    GcsFaultToleranceOptions,
    HeadGroupSpec,
    ObjectMeta,
    RayCluster,
    RayClusterSpec,
    RayJob,
    RayJobSpec,
    RayService,
    RayServiceSpec,
    RedisCredential,
    WorkerGroupSpec,
)
from stetholm.cluster.serve_config import serve_config
from stetholm.cluster.timeouts import HEAD_ENVIRONMENT, STOP_WAIT, stop_wait_s
from stetholm.errors import UserError
from stetholm.settings import Settings

HOME = "/opt/stetholm"
"""Where deploy/Dockerfile puts jobs/ and serve/."""
METRICS_PORT = 8080
SETTINGS_ANNOTATION = "stetholm-settings"
JOB_RETRIES = 3
JOB_TTL_S = 600


def ray_version() -> str:
    """Of this environment, which the image is made from too."""
    return version("ray")


def ray_cluster(described: Described) -> dict[str, Any]:
    """A RayCluster: submit jobs to it and deploy to it by hand."""
    cluster, settings = described.cluster, described.settings
    return RayCluster(
        metadata=_meta(cluster, settings), spec=_lasting(cluster, _spec(cluster, settings, list(cluster.workers)))
    ).manifest()


def ray_job(described: Described, job: str = "pipeline") -> dict[str, Any]:
    """A RayJob: a cluster, the job, and the cluster's end. A retry continues the run, as its run.name is the same.

    Raises:
        UserError: ``job`` cannot be a script of ``jobs/``.
    """
    if not re.fullmatch("[a-z_]{1,14}", job):
        raise UserError(f"--job {job}: the name of a script of jobs/, as in --job sft")
    cluster, settings = described.cluster, described.settings
    spec = RayJobSpec(
        entrypoint=f"python {HOME}/jobs/{job}.py",
        runtime_env_yaml=yaml.safe_dump({"env_vars": environment(settings)}, sort_keys=False),
        backoff_limit=JOB_RETRIES,
        shutdown_after_job_finishes=True,
        ttl_seconds_after_finished=JOB_TTL_S,
        submission_mode="K8sJobMode",
        metadata={"stetholm": job, "run": settings.run.name},
        ray_cluster_spec=_spec(cluster, settings, _without(cluster, "server")),
    )
    return RayJob(metadata=_meta(cluster, settings, job), spec=spec).manifest()


def ray_service(described: Described) -> dict[str, Any]:
    """A RayService: the endpoint, replaced without a gap when its settings or its image change."""
    cluster, settings = described.cluster, described.settings
    config = serve_config(settings, host="0.0.0.0")
    spec = RayServiceSpec(
        serve_config_v2=yaml.safe_dump(config, sort_keys=False),
        ray_cluster_config=_lasting(cluster, _spec(cluster, settings, _without(cluster, "data", "trainer"))),
    )
    return RayService(metadata=_meta(cluster, settings, "serve"), spec=spec).manifest()


def _without(cluster: ClusterFile, *roles: str) -> list[str]:
    """Worker types that are not for these roles."""
    left_out = {cluster.node_type_for(role) for role in roles}
    return [name for name in cluster.workers if name not in left_out]


def _meta(cluster: ClusterFile, settings: Settings, suffix: str | None = None) -> ObjectMeta:
    return ObjectMeta(
        name=cluster.cluster_name if suffix is None else f"{cluster.cluster_name}-{suffix.replace('_', '-')}",
        namespace=cluster.kubernetes.namespace,
        labels={"app.kubernetes.io/part-of": "stetholm"},
        annotations={SETTINGS_ANNOTATION: json.dumps(given(settings), ensure_ascii=False)},
    )


def _spec(cluster: ClusterFile, settings: Settings, workers: list[str]) -> RayClusterSpec:
    return RayClusterSpec(
        ray_version=ray_version(),
        auth_options=AuthOptions(mode="token"),
        enable_in_tree_autoscaling=True,
        autoscaler_options=AutoscalerOptions(
            version="v2",
            idle_timeout_seconds=round(cluster.idle_timeout_minutes * 60),
            upscaling_mode="Default",
        ),
        head_group_spec=_head(cluster, settings),
        worker_group_specs=[_worker(cluster, settings, name) for name in workers],
    )


def _lasting(cluster: ClusterFile, spec: RayClusterSpec) -> RayClusterSpec:
    """With Redis, where there is one: the endpoint then outlives a restart of the head. A job does not."""
    part = cluster.kubernetes
    if part.redis_address is None:
        return spec
    key = {"secretKeyRef": {"name": part.redis_secret, "key": "password"}}
    password = RedisCredential(value_from=key) if part.redis_secret else None
    options = GcsFaultToleranceOptions(redis_address=part.redis_address, redis_password=password)
    return spec.model_copy(update={"gcs_fault_tolerance_options": options})


def _head(cluster: ClusterFile, settings: Settings) -> HeadGroupSpec:
    return HeadGroupSpec(
        labels=cluster.head.labels or None,
        ray_start_params={"dashboard-host": "0.0.0.0", **_start_params(cluster.head)},
        template=_pod(cluster, settings, cluster.head_node_type),
    )


def _worker(cluster: ClusterFile, settings: Settings, name: str) -> WorkerGroupSpec:
    kind = cluster.workers[name]
    return WorkerGroupSpec(
        group_name=name,
        replicas=kind.min_workers,
        min_replicas=kind.min_workers,
        max_replicas=cluster.most(name),
        labels=kind.labels or None,
        idle_timeout_seconds=None if kind.idle_timeout_s is None else round(kind.idle_timeout_s),
        ray_start_params=_start_params(kind),
        template=_pod(cluster, settings, name),
    )


def _start_params(kind: NodeType) -> dict[str, str]:
    """What a node tells Ray that it has: what the file says, whatever its container's limits are."""
    own = {name: count for name, count in kind.resources.items() if name not in ("CPU", "GPU", "memory")}
    params = {
        "num-cpus": kind.resources.get("CPU"),
        "num-gpus": kind.resources.get("GPU"),
        "memory": kind.resources.get("memory"),
        # KubeRay passes it through a shell.
        "resources": f"'{json.dumps(own)}'" if own else None,
        "metrics-export-port": METRICS_PORT,
    }
    return {key: str(value) for key, value in params.items() if value is not None}


def _pod(cluster: ClusterFile, settings: Settings, name: str) -> dict[str, Any]:
    """A PodTemplateSpec; the operator adds the command, the token's environment and /dev/shm."""
    part, kind = cluster.kubernetes, cluster.available_node_types[name]
    spec = {
        "serviceAccountName": part.service_account,
        "terminationGracePeriodSeconds": stop_wait_s(settings.train.grace_seconds),
        "tolerations": [{"key": part.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}]
        if kind.gpus
        else None,
        "containers": [_container(cluster, settings, name)],
    }
    return {"metadata": {"labels": _labels(kind)}, "spec": _given(spec)}


def _labels(kind: NodeType) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "stetholm", **kind.labels}


def _container(cluster: ClusterFile, settings: Settings, name: str) -> dict[str, Any]:
    part, head = cluster.kubernetes, name == cluster.head_node_type
    secret = part.storage_secret
    env = (HEAD_ENVIRONMENT if head else {}) | {STOP_WAIT: str(stop_wait_s(settings.train.grace_seconds))}
    ports = {"metrics": METRICS_PORT, "serve": settings.serve.port}
    if head:
        ports |= {"gcs": 6379, "dashboard": 8265, "client": 10001}
    return _given(
        {
            "name": "ray-head" if head else "ray-worker",
            "image": part.image,
            "imagePullPolicy": part.image_pull_policy,
            "resources": _resources(cluster, name),
            "ports": [{"name": key, "containerPort": port} for key, port in ports.items()],
            "env": [{"name": key, "value": value} for key, value in env.items()],
            "envFrom": [{"secretRef": {"name": secret, "optional": True}}] if secret else None,
        }
    )


def _resources(cluster: ClusterFile, name: str) -> dict[str, dict[str, str]]:
    """Requests equal limits: Ray plans with what it was told, and memory that is not there kills a pod."""
    size, kind = cluster.pod(name), cluster.available_node_types[name]
    wanted = {"cpu": size.cpu, "memory": size.memory}
    if kind.gpus:
        wanted[cluster.kubernetes.gpu_resource] = str(kind.gpus)
    return {"requests": dict(wanted), "limits": dict(wanted)}


def _given(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}
