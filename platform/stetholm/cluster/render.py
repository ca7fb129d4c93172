"""One file, several launchers: ``render(described, kind)`` gives the text of a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import yaml

from stetholm.cluster.compose import compose
from stetholm.cluster.explicit import given, has_secrets
from stetholm.cluster.file import Described, merged
from stetholm.cluster.kuberay import ray_cluster, ray_job, ray_service
from stetholm.cluster.serve_config import serve_config
from stetholm.settings import EMBEDDED

Kind = Literal["raycluster", "rayjob", "rayservice", "serve", "compose", "ray"]
KINDS: tuple[Kind, ...] = get_args(Kind)

USES: dict[str, str] = {
    "raycluster": "kubectl apply -f - (KubeRay 1.5.1 or later)",
    "rayjob": "kubectl apply -f - (KubeRay 1.5.1 or later)",
    "rayservice": "kubectl apply -f - (KubeRay 1.5.1 or later)",
    "serve": "serve deploy <file>, from a machine that reaches the head's dashboard",
    "compose": "docker compose -f <file> up",
    "ray": "ray up <file>",
}


def render(described: Described, kind: Kind, job: str = "pipeline") -> str:
    """The text of a rendering, with a first comment that says what to do with it.

    Args:
        described: the cluster file.
        kind: for which launcher.
        job: a script of ``jobs/``, for ``rayjob``.
    """
    makers: dict[Kind, Callable[[], dict[str, Any]]] = {
        "raycluster": lambda: ray_cluster(described),
        "rayjob": lambda: ray_job(described, job),
        "rayservice": lambda: ray_service(described),
        "serve": lambda: serve_config(described.settings),
        "compose": lambda: compose(described),
        "ray": lambda: launcher_file(described),
    }
    head = f"# Rendered from cluster.yaml: python -m stetholm.cluster render --kind {kind}\n# Use: {USES[kind]}\n"
    return head + yaml.dump(makers[kind](), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def launcher_file(described: Described) -> dict[str, Any]:
    """The cluster-launcher file itself, with what was put over it and the settings that were given."""
    return merged(described.raw, {"metadata": {"stetholm": _tree(given(described.settings))}})


def warnings(described: Described, kind: Kind) -> list[str]:
    """What an operator should know of a rendering before using it."""
    settings, found = described.settings, []
    if settings.storage.uri == EMBEDDED:
        found.append(
            "storage.uri is embedded, which serves one machine: name a bucket, e.g. --set storage.uri=s3://bucket/prefix"
        )
    if has_secrets(settings) and kind != "ray":
        found.append("storage.access_key and storage.secret_key are left out: give them as metadata.kubernetes says")
    if kind in ("serve", "rayservice") and settings.serve.api_keys_file is None:
        found.append("serve.api_keys_file is not set: whoever reaches the endpoint may ask it")
    if kind in ("serve", "rayservice") and settings.serve.model is None:
        found.append("serve.model is not set: the endpoint takes the run's latest checkpoint when a replica starts")
    return found


def _tree(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *above, last = key.split(".")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


class _Dumper(yaml.SafeDumper):
    """Several lines of text as a block, nothing as an alias: for people to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
