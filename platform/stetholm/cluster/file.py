"""``cluster.yaml``, typed: what Ray's launcher reads of it, and ``metadata.kubernetes``.

Ray's own schema decides what is valid (``ray up`` checks it); here are the parts that renderings and plans need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stetholm.cluster.explicit import flat
from stetholm.errors import UserError
from stetholm.settings import Settings, load_settings
from stetholm.settings.load import DEFAULT_CONFIG

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
"""Kubernetes' notation of an amount: 500m, 4, 16Gi."""


class _Part(BaseModel):
    """A part of Ray's file: what we do not read may stand in it too."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PodSize(BaseModel):
    """What a pod of a node type asks for and gets."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    cpu: str = Field("1", pattern=QUANTITY)
    memory: str = Field("4Gi", pattern=QUANTITY)


class KubernetesPart(BaseModel):
    """``metadata.kubernetes``: what only Kubernetes and compose need to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = Field("stetholm-platform:latest", min_length=1)
    """Made by deploy/Dockerfile."""
    image_pull_policy: str = Field("IfNotPresent", pattern="^(Always|IfNotPresent|Never)$")
    namespace: str = "default"
    storage_secret: str | None = None
    """A Secret whose entries become the environment of all pods: the storage's keys."""
    service_account: str | None = None
    gpu_resource: str = "nvidia.com/gpu"
    redis_address: str | None = None
    """``host:port`` of a Redis that keeps the head's books; default: none, and they are lost with the head."""
    redis_secret: str | None = None
    """A Secret whose entry ``password`` is Redis's."""
    pods: dict[str, PodSize] = {}


class NodeType(_Part):
    """One entry of ``available_node_types``."""

    resources: dict[str, int] = {}
    """What Ray's scheduler counts: CPU, GPU, memory in bytes, names of one's own."""
    labels: dict[str, str] = {}
    min_workers: int = Field(0, ge=0)
    max_workers: int | None = Field(None, ge=0)
    idle_timeout_s: float | None = Field(None, ge=0)
    node_config: dict[str, Any] = {}

    @property
    def gpus(self) -> int:
        """GPUs of a node."""
        return self.resources.get("GPU", 0)

    @property
    def cpus(self) -> int:
        """CPUs that Ray counts on a node."""
        return self.resources.get("CPU", 0)

    @property
    def machine(self) -> str | None:
        """The provider's name of the machine, where the file gives one."""
        given = self.node_config.get("InstanceType") or self.node_config.get("machineType")
        return str(given) if given else None


class _Metadata(_Part):
    kubernetes: KubernetesPart = KubernetesPart()


class ClusterFile(_Part):
    """The whole file, less the platform's settings."""

    cluster_name: str = Field(pattern=r"^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$")
    """Kubernetes' rule for names, with room for a job's name; KubeRay allows 47 characters in all."""
    provider: dict[str, Any] = {}
    max_workers: int = Field(2, ge=0)
    idle_timeout_minutes: float = Field(5.0, ge=0)
    available_node_types: dict[str, NodeType] = {}
    """Empty for machines of one's own: Ray's provider ``local`` makes one type of all of them."""
    head_node_type: str = ""
    metadata: _Metadata = _Metadata()

    @model_validator(mode="after")
    def _head_is_a_type(self) -> ClusterFile:
        if self.provider.get("type") == "local" and not self.available_node_types:
            return self
        if self.head_node_type not in self.available_node_types:
            raise ValueError(f"head_node_type {self.head_node_type!r} is none of available_node_types")
        unknown = sorted(set(self.kubernetes.pods) - set(self.available_node_types))
        if unknown:
            raise ValueError(f"metadata.kubernetes.pods names {unknown[0]!r}, which is none of available_node_types")
        return self

    @property
    def kubernetes(self) -> KubernetesPart:
        """``metadata.kubernetes``."""
        return self.metadata.kubernetes

    @property
    def head(self) -> NodeType:
        """The head's node type.

        Raises:
            UserError: the file has no node types.
        """
        if not self.available_node_types:
            raise UserError("the cluster file has no available_node_types: only --kind ray and serve make sense of it")
        return self.available_node_types[self.head_node_type]

    @property
    def workers(self) -> dict[str, NodeType]:
        """The other node types, in the file's order."""
        return {name: kind for name, kind in self.available_node_types.items() if name != self.head_node_type}

    def most(self, name: str) -> int:
        """How many nodes of a worker type there may be."""
        kind = self.workers[name]
        return self.max_workers if kind.max_workers is None else min(kind.max_workers, self.max_workers)

    def pod(self, name: str) -> PodSize:
        """The size of a pod of a node type; what the file leaves out is derived from its CPUs."""
        given = self.kubernetes.pods.get(name)
        return given or PodSize(cpu=str(max(self.available_node_types[name].cpus, 1)))

    def node_type_for(self, role: str) -> str | None:
        """Name of the worker type with that name or label ``stetholm.role``."""
        for name, kind in self.workers.items():
            if role in (name, kind.labels.get("stetholm.role")):
                return name
        return None


@dataclass(frozen=True)
class Described:
    """A cluster file with all that is read from it.

    Attributes:
        raw: the file as YAML gives it, with what was put over it.
        cluster: Ray's part, typed.
        settings: the platform's settings.
    """

    raw: Mapping[str, Any]
    cluster: ClusterFile
    settings: Settings


def read_cluster(
    path: Path | None = None,
    overrides: Sequence[str] = (),
    over: Sequence[Path] = (),
    environ: Mapping[str, str] | None = None,
) -> Described:
    """Read a cluster file.

    Args:
        path: default ``cluster.yaml`` in the current directory.
        overrides: ``key=value`` of the platform's settings, as for ``--set``.
        over: files of differences, put over it in order; see :func:`merged`.
        environ: default ``os.environ``; see :func:`stetholm.settings.load_settings`.

    Raises:
        UserError: a file is missing, is no YAML, or is no cluster file; one line.
    """
    path = path or Path(DEFAULT_CONFIG)
    raw = _mapping(path)
    differences = [_mapping(other) for other in over]
    for difference in differences:
        raw = merged(raw, difference)
    try:
        cluster = ClusterFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None
    put_over = [pair for each in differences for pair in flat((each.get("metadata") or {}).get("stetholm") or {})]
    return Described(raw, cluster, load_settings(path, [*put_over, *overrides], environ))


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` put over ``under``: mappings key by key; a ``null`` removes a key; all else is replaced whole."""
    result = dict(under)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such cluster file: run from the project's folder, or name one") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a cluster file: it must be a mapping")
    return content
