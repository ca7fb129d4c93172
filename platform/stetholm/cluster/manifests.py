"""KubeRay's resources, as far as we write them: ``ray.io/v1`` RayCluster, RayJob and RayService.

Field names and types are those of KubeRay's API reference (v1.6, https://docs.ray.io/en/latest/cluster/kubernetes).
Unknown fields are refused, so that a misspelt one is found here and not ignored by the API server;
tests/cluster/test_kuberay.py holds the names against a list of KubeRay's own.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP: Literal["ray.io/v1"] = "ray.io/v1"


class Resource(BaseModel):
    """Base: camel case outside, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    def manifest(self) -> dict[str, Any]:
        """As Kubernetes reads it: camel case, without what is not set."""
        return self.model_dump(by_alias=True, exclude_none=True)


class ObjectMeta(Resource):
    """Name and labels of an object."""

    name: str
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class AuthOptions(Resource):
    """Ray's authentication; the operator makes the Secret and sets the environment (KubeRay 1.5.1 and later)."""

    mode: Literal["disabled", "token"]


class AutoscalerOptions(Resource):
    """Of the autoscaler, a container beside the head."""

    version: Literal["v1", "v2"] | None = None
    idle_timeout_seconds: int | None = None
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None
    resources: dict[str, dict[str, str]] | None = None


class RedisCredential(Resource):
    """A password, from where Kubernetes keeps it."""

    value_from: dict[str, Any]
    """A Kubernetes EnvVarSource."""


class GcsFaultToleranceOptions(Resource):
    """Where the head keeps its books, to find them again after a restart (KubeRay 1.3 and later)."""

    redis_address: str
    redis_password: RedisCredential | None = None


class HeadGroupSpec(Resource):
    """The head pod."""

    labels: dict[str, str] | None = None
    """Of the Ray node (KubeRay 1.5 and later)."""
    ray_start_params: dict[str, str]
    template: dict[str, Any]
    """A Kubernetes PodTemplateSpec."""


class WorkerGroupSpec(Resource):
    """Worker pods of one node type."""

    group_name: str = Field(min_length=1)
    replicas: int = Field(ge=0)
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=0)
    idle_timeout_seconds: int | None = None
    labels: dict[str, str] | None = None
    ray_start_params: dict[str, str]
    template: dict[str, Any]


class RayClusterSpec(Resource):
    """A cluster."""

    ray_version: str
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool
    autoscaler_options: AutoscalerOptions
    gcs_fault_tolerance_options: GcsFaultToleranceOptions | None = None
    head_group_spec: HeadGroupSpec
    worker_group_specs: list[WorkerGroupSpec]


class RayJobSpec(Resource):
    """A job, and the cluster that lives as long as it."""

    entrypoint: str
    runtime_env_yaml: str | None = Field(None, alias="runtimeEnvYAML")
    backoff_limit: int = Field(ge=0)
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int = Field(ge=0)
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    metadata: dict[str, str] | None = None
    ray_cluster_spec: RayClusterSpec


class RayServiceSpec(Resource):
    """The endpoint, and its cluster."""

    serve_config_v2: str = Field(alias="serveConfigV2")
    """A Serve deploy config, as text."""
    ray_cluster_config: RayClusterSpec


class RayCluster(Resource):
    """``kubectl get rayclusters``."""

    api_version: Literal["ray.io/v1"] = GROUP
    kind: Literal["RayCluster"] = "RayCluster"
    metadata: ObjectMeta
    spec: RayClusterSpec


class RayJob(Resource):
    """``kubectl get rayjobs``."""

    api_version: Literal["ray.io/v1"] = GROUP
    kind: Literal["RayJob"] = "RayJob"
    metadata: ObjectMeta
    spec: RayJobSpec


class RayService(Resource):
    """``kubectl get rayservices``."""

    api_version: Literal["ray.io/v1"] = GROUP
    kind: Literal["RayService"] = "RayService"
    metadata: ObjectMeta
    spec: RayServiceSpec
